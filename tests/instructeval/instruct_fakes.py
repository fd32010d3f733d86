"""Made-up questions of the four benchmarks in every layout, a byte tokenizer, a tiny LLaMA, and a scripted model."""

import csv
import functools
import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from hydra.utils import instantiate
from omegaconf import OmegaConf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from melora_bench.files import ROOT

BENCHMARKS = ["mmlu", "bbh", "drop", "humaneval"]

# {subject: (dev rows, test rows)}; a row is question, four choices, letter.
MMLU_ROWS = {
    "toy_zoology": (
        [
            ["Which one barks?", "cat", "dog", "cow", "hen", "B"],
            ["Which one lays eggs?", "cat", "dog", "cow", "hen", "D"],
        ],
        [
            ["Which one purrs?", "cat", "None", "NA", "hen", "A"],
            ["Which one moos?", "cat", "dog", "cow", "1.50", "C"],
            ["Which one crows?", "cat", "dog", "cow", "cock", "D"],
        ],
    ),
    "colours": (
        [["Sky?", "red", "blue", "pink", "grey", "B"], ["Grass?", "green", "blue", "pink", "grey", "A"]],
        [["Snow?", "red", "white", "pink", "grey", "B"]],
    ),
}
# {task: rows}; a row is input, target; the first two are shots.
BBH_ROWS = {
    "negation": [
        ("not True is", "False"),
        ("not False is", "True"),
        ("not not True is", "True"),
        ("not ( True ) is", "False"),
    ],
    "answers": [("Is 2 even?", "Yes"), ("Is 3 even?", "No"), ("Is 5 even?", "No")],
}
# passage, question, spans of all annotators
DROP_ROWS = [
    (" The ram has 2 horns. ", "How many horns? ", ["2", " 2 ", "2"]),
    ("The ewe has 1 lamb.", "How many lambs?", ["1"]),
    ("The ewe has 1 lamb.", "Who has a lamb?", ["ewe", "The ewe"]),
    ("Ann met Bob and Cid.", "Whom did Ann meet?", ["Bob", "Cid"]),
    ("The kid is 3 weeks old.", "How old is the kid?", ["3 weeks", "3 weeks"]),
    ("The ram has 4 legs.", "How many legs?", ["4"]),
    ("The kid drank milk.", "What did it drink?", ["milk"]),
    ("The kid drank milk.", "Who drank?", ["kid "]),
]
HUMANEVAL_ROWS = [
    {
        "task_id": f"Toy/{number}",
        "prompt": f'def {name}(x):\n    """Return x {word} 1."""\n',
        "canonical_solution": f"    return x {sign} 1\n",
        "test": f"def check(candidate):\n    assert candidate(3) == {result}\n",
        "entry_point": name,
    }
    for number, (name, word, sign, result) in enumerate([("more", "plus", "+", 4), ("less", "minus", "-", 2)])
]
HUMANEVAL_ROWS[1]["canonical_solution"] = "    y = x - 1\n\n    return y\n"  # the cut breaks it

SMALL = {"mmlu": {"subjects": 2, "shots": 2}, "bbh": {"subjects": 2, "shots": 2}, "drop": {"shots": 2}, "humaneval": {}}


def benchmark(name: str, **fields):
    """The benchmark of configs/benchmark/<name>.yaml, sized for the rows above."""
    config = OmegaConf.load(ROOT / "configs" / "benchmark" / f"{name}.yaml")
    return instantiate(OmegaConf.merge(config, SMALL[name], fields))


def write_gz(path: Path, rows: list[dict]) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def write_original(root: Path) -> Path:
    """The files as their authors publish them."""
    for split in ("dev", "test"):
        (root / "mmlu" / split).mkdir(parents=True)
        for subject, rows in MMLU_ROWS.items():
            with (root / "mmlu" / split / f"{subject}_{split}.csv").open("w", newline="") as file:
                csv.writer(file).writerows(rows[split == "test"])
    (root / "bbh" / "bbh").mkdir(parents=True)
    for task, rows in BBH_ROWS.items():
        content = {"canary": "none", "examples": [{"input": a, "target": b} for a, b in rows]}
        (root / "bbh" / "bbh" / f"{task}.json").write_text(json.dumps(content))
    (root / "drop").mkdir()
    joined = {2: "ewe|The ewe", 3: "Bob and Cid"}
    write_gz(
        root / "drop" / "drop_v0_dev.jsonl.gz",
        [
            {
                "context": f"Passage: {p}\nQuestion: {q}\nAnswer:",
                "completion": " x",
                "ref_text": joined.get(i, "|".join(spans)),
            }
            for i, (p, q, spans) in enumerate(DROP_ROWS)
        ],
    )
    (root / "humaneval").mkdir()
    write_gz(root / "humaneval" / "HumanEval.jsonl.gz", HUMANEVAL_ROWS)
    return root


def parquet(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_hub(root: Path, *, converted: bool = False) -> Path:
    """The hub's parquet files, as its main branches have them or as its conversions do."""

    def place(name: str, config: str, split: str) -> Path:
        return (
            root
            / name
            / (f"{config}/{split}/0000.parquet" if converted else f"{config}/{split}-00000-of-00001.parquet")
        )

    for split in ("dev", "test"):
        parquet(
            place("mmlu", "all", split),
            [
                {"question": row[0], "subject": subject, "choices": row[1:5], "answer": "ABCD".index(row[5])}
                for subject, rows in MMLU_ROWS.items()
                for row in rows[split == "test"]
            ],
        )
    for task, rows in BBH_ROWS.items():
        parquet(place("bbh", task, "test"), [{"input": a, "target": b} for a, b in rows])
    parquet(
        place("drop", "default" if converted else "data", "validation"),
        [
            {
                "section_id": "s",
                "query_id": str(i),
                "passage": p,
                "question": q,
                "answers_spans": {"spans": spans, "types": ["span"] * len(spans)},
            }
            for i, (p, q, spans) in enumerate(DROP_ROWS)
        ],
    )
    parquet(place("humaneval", "openai_humaneval", "test"), HUMANEVAL_ROWS)
    return root


@functools.cache
def byte_tokenizer(pad: bool = False):
    """One token per byte, <s> in front, </s> = 257; decodes exactly."""
    vocabulary = {char: number for number, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary |= {"<s>": 256, "</s>": 257, "<pad>": 258}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    special = {"bos_token": "<s>", "eos_token": "</s>"} | ({"pad_token": "<pad>"} if pad else {})
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@functools.cache
def tiny_llama(seed: int = 0):
    """Two layers, random weights large enough that greedy outputs vary."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=259,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=512,
        bos_token_id=256,
        eos_token_id=257,
        initializer_range=0.3,
    )
    return transformers.LlamaForCausalLM(config).eval()


class ScriptedModel(torch.nn.Module):
    """Writes `script[text]` after a prompt that ends in `text`, then the end; keeps the prompts it saw."""

    device = torch.device("cpu")

    def __init__(self, script: dict[str, str], positions: int = 10_000) -> None:
        super().__init__()
        self.script, self.seen = script, []
        self.config = SimpleNamespace(max_position_embeddings=positions)
        self.generation_config = transformers.GenerationConfig(eos_token_id=257)

    def base_model(self, ids, use_cache):
        return SimpleNamespace(past_key_values=None)  # nothing that could be handed on

    def generate(self, input_ids, attention_mask, past_key_values, generation_config, logits_processor):
        assert past_key_values is None
        tokenizer, written = byte_tokenizer(), []
        for ids, mask in zip(input_ids, attention_mask, strict=True):
            assert ids[mask.bool()][0] == 256  # BOS stands after the padding
            prompt = tokenizer.decode(ids[mask.bool()][1:])
            self.seen.append(prompt)
            output = next(output for end, output in self.script.items() if prompt.endswith(end))
            written.append([*tokenizer(output, add_special_tokens=False).input_ids, 257])
        longest = max(map(len, written))
        padded = [row + [generation_config.pad_token_id] * (longest - len(row)) for row in written]
        return torch.cat([input_ids, torch.tensor(padded)], dim=1)
