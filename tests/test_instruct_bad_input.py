"""Instruction tuning: every mistake ends in one line that names the file and row, or the key, and what would do."""

import gzip
import importlib.util
import json
import shutil

import pytest
import transformers
from conftest import run_point

GOOD = [{"instruction": f"Say {number}.", "input": "", "output": f"{number}"} for number in range(20)]


@pytest.fixture
def tiny_overrides(alpaca_overrides):
    """What `refused` runs."""
    return alpaca_overrides


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction": "Say it."}, r"row 20 has no text under 'output': every row needs instruction and output"),
        ({"instruction": "Say it.", "output": None}, r"row 20 has no text under 'output'"),
        ({"instruction": 3, "output": "x"}, r"row 20 has no text under 'instruction'"),
        ({"instruction": "Say \ud800.", "output": "x"}, r"row 20 has no text under 'instruction'"),
        ({"instruction": "Say it.", "input": 5, "output": "x"}, r"input is 5 in row 20, not a text"),
        (["Say it.", "x"], r"row 20 has no text under 'instruction'"),
    ],
    ids=["no output", "output null", "a number", "half a character", "input a number", "a list"],
)
@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_a_row_that_is_none(row, message, ending, tmp_path, refused):
    rows = [*GOOD, row]
    text = json.dumps(rows) if ending == "json" else "\n".join(map(json.dumps, rows))
    (tmp_path / f"rows.{ending}").write_text(text)
    refused(rf"{tmp_path}/rows\.{ending}: {message}", f"data.root={tmp_path}/rows.{ending}")


WHOLE = json.dumps(GOOD).encode()
LINES = "\n".join(map(json.dumps, GOOD)).encode()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.json", WHOLE[:-9], r"cannot be read as json \(.*\): is the file complete\?"),
        ("rows.json", b"", r"cannot be read as json \(.*\): is the file complete\?"),
        ("rows.jsonl", LINES[:-9], r"cannot be read as jsonl \(in line 20: .*\): is the file complete\?"),
        ("rows.jsonl", b"", r"must hold a list of rows with instruction, input and output"),
        (
            "rows.json.gz",
            gzip.compress(WHOLE)[:-20],
            r"cannot be read as json \(Compressed file ended .*: is the file complete",
        ),
        ("rows.json.gz", WHOLE, r"cannot be read as json \(Not a gzipped file .*: is the file complete\?"),
        ("rows.parquet", b"PAR1 PAR1 PAR1", r"cannot be read as parquet \(.*\): is the file complete\?"),
        ("rows.json", b"[]", r"must hold a list of rows with instruction, input and output"),
        (
            "rows.json",
            json.dumps({"data": GOOD}).encode(),
            r"must hold a list of rows with instruction, input and output",
        ),
        (
            "rows.json",
            json.dumps(GOOD[:9]).encode(),
            r"has 9 rows: at least 10 are needed to keep a tenth for validation",
        ),
    ],
    ids=["cut json", "empty", "cut jsonl", "no lines", "cut gz", "no gz", "parquet", "no rows", "a dict", "few"],
)
def test_a_file_that_is_none(name, content, message, tmp_path, refused):
    (tmp_path / name).write_bytes(content)
    refused(rf"{tmp_path}/{name} {message}", f"data.root={tmp_path}/{name}")


def test_ten_rows_are_enough(tmp_path, alpaca_overrides):
    (tmp_path / "rows.json").write_text(json.dumps(GOOD[:10]))
    [record] = run_point([*alpaca_overrides, f"data.root={tmp_path}", "epochs=1"])
    data = json.loads(record.read_text())["data"]
    assert [(data[name]["rows"], data[name]["of"]) for name in ("train", "validation")] == [(9, 10), (1, 10)]


def test_a_folder_with_two_files_or_none(tmp_path, refused):
    folder = tmp_path / "two"
    folder.mkdir()
    message = rf"data\.root={folder} must be or hold one \.json, \.jsonl, \.parquet file, plain or \.gz: there "
    refused(message + "is none", f"data.root={folder}")
    (folder / "about.txt").touch()
    refused(message + "is none", f"data.root={folder}")
    (folder / "a.json").touch()
    (folder / "b.jsonl.gz").touch()
    refused(message + r"are a\.json, b\.jsonl\.gz", f"data.root={folder}")
    refused(r"data\.root=/nowhere must be or hold one .* there is none", "data.root=/nowhere")
    refused(r"data=local needs data\.root=FILE or DIR with one \.json, \.jsonl or \.parquet", "data.root=null")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.template='{instruction}'", r"task\.template must hold \{input\} and \{instruction\} and no other field"),
        (
            "task.template='{instruction} {input} {output}'",
            r"task\.template must hold \{input\} and \{instruction\} and no",
        ),
        (
            "task.template='{instruction} {input'",
            r"task\.template must hold \{input\} and \{instruction\} and no other field",
        ),
        (
            "task.template_without_input=Answer",
            r"task\.template_without_input must hold \{instruction\} and no other field",
        ),
        ("task.validation_rows=0", r"task\.validation_rows=0 must be a whole number from 1 on"),
        ("task.validation_rows=-5", r"task\.validation_rows=-5 must be a whole number from 1 on"),
        ("task.split_seed=x", r"task\.split_seed=x must be a whole number"),
        ("max_length=1", r"max_length=1 leaves no token to learn in the train rows: raise it"),
        (
            "max_length=400",
            r"max_length=400 lets texts of 400 tokens through, backbone tiny reads 256: lower it to that",
        ),
        ("backbone.dtype=bfloat16", r"backbone\.dtype=bfloat16 needs a precision like it: precision=bf16 or fp16"),
        ("backbone.dtype=float8", r"backbone\.dtype='float8' is unknown: use float32, bfloat16, float16"),
        ("backbone.quantization=int8", r"backbone\.quantization='int8' is unknown: use nf4 or null"),
        ("method=head", r"method=head has nothing to train on a language model"),
    ],
)
def test_a_value_that_cannot_be(override, message, tmp_path, refused):
    long = [*GOOD, {"instruction": "word " * 300, "output": "x"}]
    (tmp_path / "rows.json").write_text(json.dumps(long))
    refused(message, f"data.root={tmp_path}/rows.json", override)


def test_prompts_that_are_cut_leave_nothing_to_learn(refused):
    refused(
        r"max_length=30 leaves no token to learn in the train rows: raise it",
        "task.loss_on_prompt=false",
        "max_length=30",
    )


def test_4_bits_need_bitsandbytes(refused, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: name != "bitsandbytes" and real(name, *rest))
    refused(r"backbone\.quantization=nf4 needs bitsandbytes: pip install .*qlora", "backbone.quantization=nf4")


def test_full_fine_tuning_of_weights_in_half_precision(refused):
    refused(
        r"full fine-tuning trains the weights themselves, which needs backbone\.dtype=float32 .* is torch\.bfloat16",
        "method=full",
        "backbone.dtype=bfloat16",
        "precision=bf16",
    )


def test_instructions_need_a_language_model_without_a_classifier(refused, tiny_roberta):
    refused(
        r"^error: backbone roberta_base is an encoder: task=alpaca needs a language model, as backbone=smollm2$",
        "backbone=roberta_base",
        f"backbone.path={tiny_roberta}",
        drop=("backbone",),
    )
    refused(
        r"^error: backbone\.pooling=mean is what a classifier reads of a row, and task=alpaca has none: leave it out$",
        "+backbone.pooling=mean",
    )


def test_alpaca_is_not_embedded_and_the_hub_may_be_offline(refused):
    refused(
        r"task=alpaca is not embedded: use data=hub, or data=local data\.root=FILE with your copy of "
        r"yahma/alpaca-cleaned",
        "data=embedded",
        drop=("data",),
    )
    refused(
        r"cannot fetch yahma/alpaca-cleaned at 'main' .*offline, use data=local data\.root=FILE",
        "data=hub",
        drop=("data",),
    )


@pytest.fixture
def without(tiny_llama, tmp_path):
    """without(*names): the tiny LLaMA, its tokenizer without these special tokens."""

    def make(*names: str):
        folder = shutil.copytree(tiny_llama, tmp_path / "-".join(names))
        path = folder / "tokenizer_config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in config.items() if key not in names}))
        return folder

    return make


@pytest.mark.parametrize("names", [["eos_token"], ["pad_token", "eos_token"]], ids=" ".join)
def test_a_tokenizer_without_an_end_token(names, without, refused):
    folder = without(*names)
    refused(rf"the tokenizer of {folder} has no end token to learn: give it one", f"backbone.path={folder}")


def test_a_tokenizer_without_a_padding_token_pads_with_the_end(without, alpaca_overrides, tmp_path):
    """Padding is masked: the run is that of the tokenizer with one."""
    places = [f"results_dir={tmp_path}/pad", f"output_dir={tmp_path}/pad"]
    [one] = run_point(alpaca_overrides)
    [two] = run_point([*alpaca_overrides, *places, f"backbone.path={without('pad_token')}"])
    losses = [[entry["metrics"]["loss"] for entry in json.loads(path.read_text())["epochs"]] for path in (one, two)]
    assert losses[0] == losses[1]


def test_a_padding_token_outside_the_embedding_pads_with_another(alpaca_overrides, tiny_llama, tmp_path):
    """A tokenizer that somebody gave a padding token, without a row for it in the model. The run is that of the old
    one."""
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<outside>"})
    tokenizer.save_pretrained(folder)
    assert tokenizer.pad_token_id == 400 == transformers.AutoConfig.from_pretrained(folder).vocab_size
    places = [f"results_dir={tmp_path}/pad", f"output_dir={tmp_path}/pad"]
    [one] = run_point(alpaca_overrides)
    [two] = run_point([*alpaca_overrides, *places, f"backbone.path={folder}"])
    losses = [[entry["metrics"]["loss"] for entry in json.loads(path.read_text())["epochs"]] for path in (one, two)]
    assert losses[0] == losses[1]
