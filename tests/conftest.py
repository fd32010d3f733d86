"""Shared fixtures: a tiny random RoBERTa, a tiny random LLaMA and tiny data, so that the real code paths run in seconds
without a network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may wait for a hub

import csv
import json
import random
import re
import signal
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from hydra import compose, initialize_config_dir
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from melora_bench.external.notices import warn_once
from melora_bench.files import ROOT
from melora_bench.training.configs import compose_run

# A shell lets what runs in its background ignore these, nohup the last, and their children too.
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGQUIT, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)

WORDS = "the a film plot actor was is good great fine bad dull poor long short story never always very quite".split()


def pytest_xdist_make_scheduler(config: pytest.Config, log: object):
    """Which tests one worker runs: those of a file, whose fixtures are made once; and all that run programs in the
    sandbox, as some of these look at what is left of such programs on the whole machine."""
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "programs" if "instruct" in file else file

    return Together(config, log)


def sentences(count: int, seed: int) -> list[tuple[str, int]]:
    """Random word strings with a learnable label: whether praise outnumbers blame."""
    source = random.Random(seed)
    rows = []
    for _ in range(count):
        words = [source.choice(WORDS) for _ in range(source.randint(3, 14))]
        score = sum(w in ("good", "great", "fine") for w in words) - sum(w in ("bad", "dull", "poor") for w in words)
        rows.append((" ".join(words), int(score > 0)))
    return rows


def write_csv(path: Path, rows: list[tuple]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Tests share one temporary cache directory and leave the user's alone."""
    monkeypatch.setenv("MELORA_BENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    warn_once.cache_clear()  # each test is a process of its own


@pytest.fixture(scope="session")
def tiny_roberta(tmp_path_factory) -> Path:
    """A checkpoint folder: 2 layers, hidden 32, random weights, a tokenizer trained on WORDS."""
    folder = tmp_path_factory.mktemp("tiny_roberta")
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator([" ".join(WORDS)], trainers.WordLevelTrainer(special_tokens=special))
    ends = [("<s>", 0), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=ends
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.RobertaConfig(
        vocab_size=len(WORDS) + 4,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=66,
        type_vocab_size=1,
    )
    transformers.RobertaForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """A data root with sst2 (one text), mrpc (a pair) and stsb (regression), 72 training and 40 validation rows
    each."""
    root = tmp_path_factory.mktemp("tiny_data")
    for number, (split, count) in enumerate((("train", 72), ("validation", 40))):
        rows = sentences(count, number)
        write_csv(root / "sst2" / f"{split}.csv", [("sentence", "label"), *rows])
        pairs = [(a, b, int(x == y)) for (a, x), (b, y) in zip(rows, rows[::-1], strict=True)]
        write_csv(root / "mrpc" / f"{split}.csv", [("sentence1", "sentence2", "label"), *pairs])
        scores = [(a, b, 5.0 * same) for a, b, same in pairs]
        write_csv(root / "stsb" / f"{split}.csv", [("sentence1", "sentence2", "label"), *scores])
    return root


@pytest.fixture
def tiny_overrides(tiny_roberta, tiny_data, tmp_path) -> list[str]:
    """Command-line overrides of a run that takes a second: the tiny model on the tiny data, files under tmp_path."""
    return [*tiny_run(tiny_roberta, tiny_data, tmp_path), "epochs=2", "batch_size=16"]


def tiny_run(roberta: Path, data: Path, root: Path) -> list[str]:
    """The overrides that put a run of SST-2 on the tiny model and data, with its files under `root`."""
    return [
        "backbone=roberta_base",
        f"backbone.path={roberta}",
        "backbone.name=tiny",
        "data=local",
        f"data.root={data}",
        "task=sst2",
        f"results_dir={root}/results",
        f"output_dir={root}/outputs",
    ]


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory) -> Path:
    """A checkpoint folder: 2 layers, hidden 32, random weights, byte-level tokens of the templates and WORDS, <s>
    first."""
    folder = tmp_path_factory.mktemp("tiny_llama")
    task = composed(["task=alpaca"]).task
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([task.template, task.template_without_input, " ".join(WORDS)] * 2, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=400,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=256,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_alpaca(tmp_path_factory) -> Path:
    """A .json of 60 rows, a third of them with an empty input: 54 to train on, 6 to validate."""
    source, rows = random.Random(0), []
    for number in range(60):
        words = [source.choice(WORDS) for _ in range(source.randint(1, 12))]
        if number % 3:
            row = {"instruction": "Say it again.", "input": " ".join(words), "output": " ".join(words)}
        else:
            row = {"instruction": f"Say {words[0]}.", "input": "", "output": f"{words[0]} " * source.randint(1, 9)}
        rows.append(row)
    path = tmp_path_factory.mktemp("tiny_alpaca") / "rows.json"
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture
def alpaca_overrides(tiny_llama, tiny_alpaca, tmp_path) -> list[str]:
    """As tiny_overrides, of the tiny LLaMA on the tiny instructions: 54 rows are 4 steps of an epoch."""
    return [
        "task=alpaca",
        "backbone=smollm2",
        f"backbone.path={tiny_llama}",
        "backbone.name=tiny",
        "data=local",
        f"data.root={tiny_alpaca}",
        "epochs=2",
        "batch_size=16",
        f"results_dir={tmp_path}/results",
        f"output_dir={tmp_path}/outputs",
    ]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The root of real benchmark files; tests that need it are skipped, saying so, where it is not set."""
    root = os.environ.get("MELORA_BENCH_DATA")
    if not root:
        pytest.skip("needs real GLUE files: set MELORA_BENCH_DATA to a folder with glue/<task>/<split>.parquet")
    return Path(root)


def composed(overrides: list[str], **options):
    """The config of a command line, as scripts/train.py would see it."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose("train", overrides, **options)


def run_point(overrides: list[str]) -> list[Path]:
    """Run one point in this process; returns the records written."""
    from melora_bench.training.run import run

    return run(*compose_run(overrides))


class Interrupted(Exception):
    """What ends a run from outside."""


def interrupt(overrides: list[str]) -> None:
    """Run one point as `run_point` does, and let it die after its first round."""
    from melora_bench.training.run import RunError
    from melora_bench.training.trainer import Trainer

    real = Trainer.train_round

    def dies(self, on_step):
        if self.step:
            raise Interrupted
        real(self, on_step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_round", dies)
        with pytest.raises(RunError, match="Interrupted"):
            run_point(overrides)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def refused(tiny_overrides, tmp_path, monkeypatch):
    """refused(pattern, *overrides): that run fails with one line that `pattern` finds, and leaves error.txt at most.

    Returns the line. `drop` are beginnings of the tiny run's overrides to leave out.
    """
    from melora_bench.training.run import RunError

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)

    def check(pattern: str, *overrides: str, drop: tuple[str, ...] = ()) -> str:
        before = files(tmp_path)
        kept = [item for item in tiny_overrides if not item.startswith(drop or "nothing")]
        with pytest.raises(RunError) as caught:
            run_point([*kept, *overrides])
        line = str(caught.value)
        assert re.search(pattern, line), line
        assert "\n" not in line
        assert len(line) < 600
        assert "Error:" not in line  # an exception's name means that nobody foresaw this
        stray = files(tmp_path) - before
        for path in stray:
            assert re.fullmatch(r"outputs/runs/adhoc/\w+/\w+-[0-9a-f]{10}(-s\d+/error\.txt|\.lock)", path), path
            if path.endswith(".lock"):
                continue
            assert f"error: {(tmp_path / path).read_text().splitlines()[0]}" == line
        assert not (tmp_path / "results").exists()
        return line

    return check
