"""Instruction tuning: the prompts, the tokens, the loss and the rows are those of the literal definition."""

import gzip
import json

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import composed
from hydra.utils import instantiate
from tokenizers import processors
from transformers import AutoTokenizer, LlamaForCausalLM

from melora_bench.tasks.batches import TrainBatches, epoch_order, evaluation_batches
from melora_bench.tasks.instruct import InstructTask, read
from melora_bench.tasks.sources import LocalData
from melora_bench.tasks.splits import unended

LIMITS = {"max_length": 96, "max_train_rows": None, "max_eval_rows": None}
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response "
    "that appropriately completes the request.\n\n### Instruction:\nSay it {again}.\n\n### "
    "Input:\nthe film\n\n### Response:\n"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nSay it {again}.\n\n### Response:\n"
)


def task_of(*overrides: str) -> InstructTask:
    return instantiate(composed(["task=alpaca", *overrides]).task, _convert_="all")


def loaded(tokenizer, path, *overrides: str, **limits) -> InstructTask:
    task = task_of(*overrides)
    task.load(LocalData(root=str(path), splits={}), tokenizer, **LIMITS | limits)
    return task


def decoded(tokenizer, split) -> list[str]:
    return [tokenizer.decode(split.ids[a:b]) for a, b in zip(split.offsets, split.offsets[1:], strict=False)]


@pytest.fixture
def tokenizer(tiny_llama):
    return AutoTokenizer.from_pretrained(tiny_llama)


@pytest.fixture
def model(tiny_llama):
    return LlamaForCausalLM.from_pretrained(tiny_llama).double().eval()


# ---- prompts and tokens


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"instruction": "Say it {again}.", "input": "the film", "output": "x"}, WITH_INPUT),
        ({"instruction": "Say it {again}.", "input": "", "output": "x"}, WITHOUT_INPUT),
        ({"instruction": "Say it {again}.", "input": None, "output": "x"}, WITHOUT_INPUT),
        ({"instruction": "Say it {again}.", "output": "x"}, WITHOUT_INPUT),
    ],
)
def test_the_prompt_is_alpacas(row, wanted):
    assert task_of().prompt(row) == wanted


def test_tokens_are_the_prompts_and_the_outputs(tokenizer, tiny_alpaca):
    """<s> first, the end token last, every character between them."""
    task = loaded(tokenizer, tiny_alpaca, max_length=200)
    wanted = {f"<s>{task.prompt(row)}{row['output']}</s>" for row in json.loads(tiny_alpaca.read_text())}
    found = decoded(tokenizer, task.train) + decoded(tokenizer, task.evaluation["validation"])
    assert len(found) == 60 and set(found) == wanted


def test_long_texts_are_cut_and_have_no_end_token(tokenizer, tiny_alpaca):
    """At the length of one text: it ends without the end token, longer ones are cut, shorter ones end in it."""
    whole = loaded(tokenizer, tiny_alpaca, max_length=200).train
    at = int(np.median(whole.lengths)) - 1  # without its end token
    assert (whole.lengths == at + 1).any() and (whole.lengths > at + 1).any() and (whole.lengths < at + 1).any()
    cut = loaded(tokenizer, tiny_alpaca, max_length=at).train
    assert (cut.lengths == np.minimum(whole.lengths, at)).all()
    for row, length in enumerate(whole.lengths):
        ids, full = cut.ids[cut.offsets[row] : cut.offsets[row + 1]], whole.ids[whole.offsets[row] :]
        assert (ids == full[: len(ids)]).all()
        assert (ids[-1] == tokenizer.eos_token_id) == (length <= at)


@pytest.mark.parametrize("on_prompt", [True, False])
def test_a_tokenizer_that_ends_texts_itself_changes_nothing(on_prompt, tokenizer, tiny_alpaca):
    """A text ends once, a cut one does not, and the first token of an answer is learned."""
    options = f"task.loss_on_prompt={on_prompt}"
    plain = loaded(tokenizer, tiny_alpaca, options, max_length=96).train
    post = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    tokenizer.backend_tokenizer.post_processor = post
    ended = loaded(tokenizer, tiny_alpaca, options, max_length=96).train
    assert 10 < (plain.lengths < 96).sum() < 54
    for key in ("ids", "offsets", "labels", "weights"):
        np.testing.assert_array_equal(getattr(plain, key), getattr(ended, key))


@pytest.mark.parametrize(
    ("single", "wanted"),
    [("<s> $A </s>", ["<s>film", "<s>", "<s></s>"]), ("$A </s>", ["film", "", "</s>"]), ("<s> $A", None), ("$A", None)],
)
def test_a_text_to_be_continued_has_no_end(single, wanted, tokenizer):
    """The end that the tokenizer adds goes; one that the text holds stays, and what stands before the text."""
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    texts = ["film", "", "</s>"]
    if wanted is None:
        wanted = tokenizer.batch_decode(tokenizer(texts).input_ids)
    assert tokenizer.batch_decode(unended(tokenizer, texts)) == wanted
    assert unended(tokenizer, []) == []


def test_padding_is_on_the_right(tokenizer, tiny_alpaca):
    split = loaded(tokenizer, tiny_alpaca).train
    batch = split.collate(np.array([0, 1, 2]))
    width = int(split.lengths[:3].max())
    assert len(set(split.lengths[:3])) > 1
    for row, length in enumerate(split.lengths[:3]):
        pad = width - length
        assert batch["attention_mask"][row].tolist() == [1] * length + [0] * pad
        assert (
            batch["input_ids"][row].tolist()
            == split.ids[split.offsets[row] : split.offsets[row + 1]].tolist() + [tokenizer.pad_token_id] * pad
        )


@pytest.mark.parametrize("on_prompt", [True, False])
def test_targets_counted_by_hand(on_prompt, tokenizer, tiny_alpaca, model):
    """With the prompt: every token but the first; without: the output's tokens and the end token."""
    task = loaded(tokenizer, tiny_alpaca, f"task.loss_on_prompt={on_prompt}", max_length=200)
    rows = json.loads(tiny_alpaca.read_text())
    prompts = {f"<s>{task.prompt(row)}{row['output']}</s>": task.prompt(row) for row in rows}
    wanted = [
        len(tokenizer(text.removeprefix("<s>").removesuffix("</s>"))["input_ids"])
        + 1
        - (1 if on_prompt else len(tokenizer(prompts[text])["input_ids"]))
        for text in decoded(tokenizer, task.train)
    ]
    assert task.train.weights.tolist() == wanted
    with torch.no_grad():
        outputs = torch.cat([task.outputs(model, batch) for _, batch in evaluation_batches(task.train, 20)])
    assert sorted(outputs[:, 1].tolist()) == sorted(wanted)


def test_a_prompt_longer_than_the_cut_leaves_a_row_without_targets(tokenizer, tiny_alpaca, model):
    """It adds nothing to the loss of its step, and no NaN; a step of such rows alone has loss and gradients 0."""
    task = loaded(tokenizer, tiny_alpaca, "task.loss_on_prompt=false", max_length=58)
    none = np.flatnonzero(task.train.weights == 0)
    some = np.flatnonzero(task.train.weights > 0)[:3]
    assert len(none) > 3 and len(some) == 3

    def loss(rows):
        weights = torch.from_numpy(task.train.weights[rows])
        return task.loss(model, task.train.collate(rows) | {"weight": weights / weights.sum().clamp(min=1)}, 1)

    assert loss(np.concatenate([some, none[:3]])).item() == pytest.approx(loss(some).item(), abs=1e-6)
    loss(none[:3]).sum().backward()
    assert loss(none[:3]).item() == 0
    assert all(value.grad is None or not value.grad.any() for value in model.parameters())


# ---- the loss


def literal(tokenizer, task, path) -> dict[str, list[tuple[list[int], list[int]]]]:
    """(ids, labels) of every row as stock code makes them: no padding, -100 where nothing is learned."""
    rows = datasets.Dataset.from_list(json.loads(path.read_text()))
    parts = rows.train_test_split(test_size=6, seed=42)
    made = {}
    for name, part in (("train", parts["train"]), ("validation", parts["test"])):
        made[name] = []
        for row in part:
            prompt = task.prompt(row)
            ids = tokenizer(prompt + row["output"])["input_ids"][: LIMITS["max_length"]]
            ids += [tokenizer.eos_token_id] * (len(ids) < LIMITS["max_length"])
            start = 0 if task.loss_on_prompt else len(tokenizer(prompt)["input_ids"])
            made[name].append((ids, [-100] * min(start, len(ids)) + ids[start:]))
    return made


def token_mean(model, rows) -> torch.Tensor:
    """The mean over all target tokens, row by row without padding."""
    counts = [sum(label != -100 for label in labels[1:]) for _, labels in rows]
    losses = [
        model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss * count
        for (ids, labels), count in zip(rows, counts, strict=True)
        if count
    ]
    return sum(losses) / sum(counts)


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: value.grad.clone() for name, value in model.named_parameters()}
    model.zero_grad()
    return found


@pytest.mark.parametrize("on_prompt", [True, False])
@pytest.mark.parametrize(
    ("accumulation", "processes"),
    [(2, 1), pytest.param(1, 1, marks=pytest.mark.slow), pytest.param(3, 2, marks=pytest.mark.slow)],
)
def test_a_steps_loss_is_the_mean_over_its_target_tokens(
    on_prompt, accumulation, processes, tokenizer, tiny_alpaca, model
):
    """Two seeds side by side, whole or in parts, a short last step included: loss and gradient of the literal loop."""
    task = loaded(tokenizer, tiny_alpaca, f"task.loss_on_prompt={on_prompt}")
    rows = literal(tokenizer, task, tiny_alpaca)["train"]
    options = {"batch_size": 20, "bucket": 2}
    shared = {"split": task.train, "seeds": [0, 1], "accumulation": accumulation, "processes": processes}
    ours = [TrainBatches(**shared, **options, process=index).steps(0, 6) for index in range(processes)]
    orders = [
        [epoch_order(task.train.lengths, seed=seed, epoch=epoch, **options) for epoch in (0, 1)] for seed in (0, 1)
    ]
    steps = list(zip(*ours, strict=True))
    assert len(steps) == 6 and [len(part) for part in orders[0][0]].count(14) == 1
    for number in (0, 2, 5):
        parts = [batch for process in steps[number] for batch in process]
        losses = sum(task.loss(model, batch, 2) for batch in parts) / len(parts)
        losses.sum().backward()
        found = gradients(model)
        means = torch.stack([token_mean(model, [rows[i] for i in order[number // 3][number % 3]]) for order in orders])
        means.sum().backward()
        assert torch.allclose(losses, means.to(losses.dtype), atol=1e-5)
        for name, value in gradients(model).items():
            assert torch.allclose(found[name], value, atol=1e-6), name
            assert value.abs().max() > 1e-5


@pytest.mark.parametrize("on_prompt", [True, False])
def test_the_evaluation_loss_is_the_mean_over_all_target_tokens(on_prompt, tokenizer, tiny_alpaca, model):
    """Not the mean of rows' or batches' means."""
    task = loaded(tokenizer, tiny_alpaca, f"task.loss_on_prompt={on_prompt}")
    rows = literal(tokenizer, task, tiny_alpaca)["validation"]
    with torch.no_grad():
        batches = evaluation_batches(task.evaluation["validation"], 4)
        outputs = torch.cat([task.outputs(model, batch) for _, batch in batches]).numpy()
        wanted = token_mean(model, rows).item()
        of_rows = np.mean([token_mean(model, [row]).item() for row in rows])
    assert task.score({"validation": outputs})["loss"] == pytest.approx(wanted, abs=2e-6)
    assert abs(of_rows - wanted) > 1e-4
    halves = [task.score({"validation": outputs}, half=half)["loss"] for half in (0, 1)]
    total, count = outputs.sum(0)
    assert min(halves) < total / count < max(halves)


# ---- which rows


@pytest.mark.parametrize(("validation", "count"), [(5, 5), (6, 6), (2000, 6)])
def test_the_validation_rows_are_those_of_train_test_split(validation, count, tokenizer, tiny_alpaca, caplog):
    """Of a small file a tenth, which the log says."""
    rows = datasets.Dataset.from_list(json.loads(tiny_alpaca.read_text()))
    parts = rows.train_test_split(test_size=count, seed=42)
    caplog.set_level("WARNING")
    task = loaded(tokenizer, tiny_alpaca, f"task.validation_rows={validation}", max_length=200)
    for split, part in ((task.train, parts["train"]), (task.evaluation["validation"], parts["test"])):
        wanted = [f"<s>{task.prompt(row)}{row['output']}</s>" for row in part]
        assert decoded(tokenizer, split) == wanted
    assert caplog.messages == ["alpaca: 6 of 60 rows validate, not 2000"] * (validation > 6)


def test_limits_take_the_first_rows_of_each_part(tokenizer, tiny_alpaca):
    whole, part = (
        loaded(tokenizer, tiny_alpaca, **limits) for limits in ({}, {"max_train_rows": 7, "max_eval_rows": 2})
    )
    assert decoded(tokenizer, part.train) == decoded(tokenizer, whole.train)[:7]
    validation = (decoded(tokenizer, task.evaluation["validation"]) for task in (part, whole))
    assert next(validation) == next(validation)[:2]


# ---- files


def write(path, rows):
    """Rows as the file that the name says."""
    if ".parquet" in path.name:
        content = pd.DataFrame(rows).to_parquet()
    elif ".jsonl" in path.name:
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    else:
        content = json.dumps(rows).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.parquet", "a.json.gz", "a.jsonl.gz", "a.parquet.gz"])
def test_every_kind_of_file_gives_equal_rows(name, tiny_alpaca, tmp_path):
    rows = json.loads(tiny_alpaca.read_text())
    rows[3]["input"] = None
    rows[4]["output"] = "\u2028 é \U0001f600\n"  # a line separator that ends no line of .jsonl
    assert read(write(tmp_path / name, rows)) == rows


@pytest.mark.parametrize("place", ["rows.json", "alpaca/rows.jsonl.gz"])
def test_a_folder_with_one_file_is_that_file(place, tiny_alpaca, tokenizer, tmp_path):
    write(tmp_path / place, json.loads(tiny_alpaca.read_text()))
    (tmp_path / "README.md").write_text("about")
    one, two = (loaded(tokenizer, path) for path in (tmp_path, tiny_alpaca))
    assert decoded(tokenizer, one.train) == decoded(tokenizer, two.train)
