"""Every mistake a person can make ends in one line that names the value and what would do, and leaves no record."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import composed, files, write_csv
from helpers import write_columns

from melora_bench.files import ROOT
from melora_bench.models.backbones import Encoder
from melora_bench.training.points import Point

PAIR = ("sentence1", "sentence2", "label")


# ---- values


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=melora", "method.n=3"], r"method\.n=3 must divide d_in=32 and d_out=32"),
        (
            ["method=melora", "method.n=64", "method.target_modules=[encoder.layer.0.output.dense]"],
            r"method\.n=64 must divide d_in=64 and d_out=32",
        ),
        (
            ["method=melora", "method.n=64", "method.target_modules=[encoder.layer.0.intermediate.dense]"],
            r"method\.n=64 must divide d_in=32 and d_out=64",
        ),
        (["method=mplora", "method.n=3"], r"method\.n=3 must divide d_out=32"),
        (["method=melora", "method.n=0"], r"method\.n=0 must be positive"),
        (["method=mplora", "method.n=-2"], r"method\.n=-2 must be positive"),
        (["method.r=0"], r"method\.r=0 must be positive"),
        (["method=melora", "method.r=-8"], r"method\.r=-8 must be positive"),
        (["method.alpha=0"], r"method\.alpha=0 must be positive"),
        (["method=mplora", "method.alpha=-16"], r"method\.alpha=-16 must be positive"),
        (["method.target_modules=[query,q_proj]"], r"'q_proj' matches no .* this model has dense, key, query, value"),
        (["method.target_modules=[]"], r"target_modules is empty: name .* such as \[query, value\]"),
        (["method.init_a=zeros"], r"init_a='zeros' is unknown: use kaiming_uniform or gaussian"),
        (["batch_size=0"], r"batch_size=0 must be a positive"),
        (["batch_size=-16"], r"batch_size=-16 must be a positive"),
        (["epochs=0"], r"epochs=0 must be a positive"),
        (["epochs=-1"], r"epochs=-1 must be a positive"),
        (["lr=0"], r"lr=0 must be a positive"),
        (["lr=nan"], r"lr=nan must be a positive"),
        (["max_train_rows=0"], r"max_train_rows=0 must be a positive whole number, or null"),
        (["seeds=[1,0,1]"], r"seeds=\[1, 0, 1\] must be a list of different numbers, such as \[0,1,2\]"),
        (["seeds=[]"], r"seeds=\[\] must be a list of different numbers"),
        (["seeds=3"], r"seeds=3 must be a list"),
        (["seeds=[0,-1]"], r"seeds=\[0, -1\] must be whole numbers from 0 on"),
        (["seeds=[0.5]"], r"seeds=\[0\.5\] must be whole numbers from 0 on"),
        (["precision=fp8"], r"precision='fp8' is unknown: use no, bf16 or fp16"),
        (["lr=1e30"], r"lr=1e\+30 must be a positive number, at most 1,000,000"),
        (["weight_decay=1e38"], r"weight_decay=1e\+38 must be a number from 0 on, at most 1,000,000"),
        (["no_decay=bias"], r"no_decay=bias must be a list of endings of names, such as \[bias\], or null"),
        (["no_decay=[]"], r"no_decay=\[\] must be a list of endings"),
        (["no_decay=[1]"], r"no_decay=\[1\] must be a list of endings"),
        (["method.alpha=1e38"], r"method\.alpha=1e\+38 must be at most 1,000,000"),
        (["method=mplora", "method.penalty_weight=1e38"], r"method\.penalty_weight=1e\+38 must be at most 1,000,000"),
        (["method.alpha=inf"], r"method\.alpha=inf must be a finite number"),
        (["method.lora_dropout=nan"], r"method\.lora_dropout=nan must be a finite number"),
        (["experiment=ablation/lr"], r"experiment=ablation/lr must be one folder's name"),
        (["experiment=.."], r"experiment=\.\. must be one folder's name"),
        (["experiment=/tmp/x"], r"experiment=/tmp/x must be one folder's name"),
        (["experiment='a b'"], r"experiment=a b must be one folder's name"),
        (["experiment=''"], r"experiment= must be one folder's name"),
        (["task.metrics=[bleu]"], r"metric 'bleu' is unknown: use one of accuracy, f1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_value_that_cannot_be(overrides, message, refused):
    refused(message, *overrides)


@pytest.mark.parametrize(
    "override",
    [
        "method.r=2.5",
        "method.r=x",
        "batch_size=2.5",
        "epochs=1.5",
        "max_train_rows=x",
        "method.target_modules=query",
        "seeds=[true]",
        "warmup_ratio=2",
    ],
)
def test_a_value_of_another_kind(override, refused):
    """The line names the key and the value as they were given."""
    key, value = override.split("=")
    refused(rf"(?i){re.escape(key)}.*{re.escape(value.strip('[]'))}", override)


@pytest.mark.parametrize(
    ("key", "there"),
    [
        ("+method.rnk", "lora_dropout"),
        ("+task.metrc", "eval_splits"),
        ("+data.rot", "splits"),
        ("+backbone.pth", "revision"),
    ],
)
def test_an_unexpected_key(key, there, refused):
    """The line names the group, the key, and the keys there are."""
    group, name = key[1:].split(".")
    refused(rf"{group}.*'?{name}'?.*{there}", f"{key}=3")


def test_an_unexpected_key_at_the_top(refused):
    refused(r"epoch\b", "+epoch=3")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device has fp16")
def test_a_precision_that_this_machine_does_not_have(refused):
    refused(r"precision=fp16 needs a CUDA device, and there is none here: use precision=bf16 or no", "precision=fp16")


# ---- data


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.root=/nowhere"], r"data\.root=/nowhere .*sst2/ .*\.parquet, \.jsonl or \.csv"),
        (["data.root=null"], r"needs data\.root=DIR, a folder with <task>/<split>\.parquet, \.jsonl or \.csv"),
        (["task=rte"], r"data\.root=\S+tiny_data\S* has no folder rte/"),
        (
            ["data.splits.train=train_full"],
            r"no sst2/train_full\.parquet.*there: train\.csv, validation\.csv.*data\.splits\.train=NAME",
        ),
        (["task.text=[text]"], r"sst2/train\.csv has no column 'text'; it has 'sentence', 'label'"),
    ],
)
def test_data_that_is_not_there(overrides, message, refused):
    refused(message, *overrides)


@pytest.fixture
def root(tmp_path, tiny_data) -> Path:
    """A copy of the tiny data to spoil."""
    shutil.copytree(tiny_data, tmp_path / "data")
    return tmp_path / "data"


@pytest.mark.parametrize(("label", "shown"), [(2, "2"), (-1, "-1"), (0.5, "0.5")])
def test_a_label_outside_the_range(label, shown, root, refused):
    write_csv(root / "sst2" / "validation.csv", [("sentence", "label"), ("good", 1), ("bad", label), ("fine", 0)])
    refused(rf"sst2: label {shown} in row 1 of the validation split is outside 0 to 1", f"data.root={root}")


@pytest.mark.parametrize("label", ["", "yes"])
def test_a_label_that_is_no_number(label, root, refused):
    write_csv(root / "sst2" / "validation.csv", [("sentence", "label"), ("good", 1), ("bad", label), ("fine", 0)])
    refused(rf"sst2/validation\.csv: label is '{label}' in row 1, not a number", f"data.root={root}")


def test_a_score_outside_the_range(root, refused):
    write_csv(root / "stsb" / "train.csv", [PAIR, ("good", "fine", 5.0), ("good", "bad", 5.2)])
    refused(r"stsb: label 5\.2 in row 1 of the train split is outside 0 to 5", "task=stsb", f"data.root={root}")


@pytest.mark.parametrize(("split", "ending"), [("train", "csv"), ("validation", "csv"), ("train", "parquet")])
def test_an_empty_split(split, ending, root, refused):
    (root / "mrpc" / f"{split}.csv").unlink()
    write_columns(root / "mrpc" / f"{split}.{ending}", {name: [] for name in PAIR})
    message = rf"mrpc/{split}\.{ending} has no rows: the {split} split of mrpc is empty"
    refused(message, "task=mrpc", f"data.root={root}")


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
def test_a_file_with_nothing_in_it(ending, root, refused):
    (root / "sst2" / "train.csv").unlink()
    (root / "sst2" / f"train.{ending}").touch()
    refused(rf"sst2/train\.{ending}.*(complete|no rows|empty|no column)", f"data.root={root}")


@pytest.mark.parametrize("part", [0.3, 0.9])
def test_a_truncated_parquet_file(part, root, refused):
    path = write_columns(root / "mrpc" / "train.parquet", {name: [f"{name} {i}" for i in range(200)] for name in PAIR})
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    refused(r"mrpc/train\.parquet cannot be read as parquet .*is the file complete\?", "task=mrpc", f"data.root={root}")


def test_a_truncated_jsonl_file(root, refused):
    (root / "sst2" / "train.csv").unlink()
    path = write_columns(root / "sst2" / "train.jsonl", {"sentence": ["good film"] * 9, "label": [0, 1, 0] * 3})
    path.write_bytes(path.read_bytes()[:-9])
    refused(r"sst2/train\.jsonl cannot be read as jsonl .*is the file complete\?", f"data.root={root}")


def test_a_text_that_is_missing(root, refused):
    (root / "sst2" / "train.csv").unlink()
    write_columns(root / "sst2" / "train.jsonl", {"sentence": ["good film", None, "bad"], "label": [1, 0, 0]})
    refused(r"sst2/train\.jsonl.*'?sentence'?.*row 1", f"data.root={root}")


def test_the_hub_offline(refused):
    refused(
        r"cannot fetch nyu-mll/glue at 'main' .*offline, use data=local data\.root=DIR",
        "data=hub",
        "task=mrpc",
        drop=("data",),
    )


def test_a_task_that_is_not_embedded(refused):
    refused(r"task=sst2 is not embedded: use data=hub, or data=local data\.root=DIR", "data=embedded", drop=("data",))


# ---- backbones


def test_a_hub_language_model_offline(refused, tmp_path):
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([{"instruction": "Add.", "input": "", "output": "1"}] * 20))
    refused(
        r"cannot fetch meta-llama/Llama-2-7b-hf .*backbone\.path=DIR .*or backbone=smollm2$",
        "backbone=llama2_7b",
        "backbone.path=null",
        "task=alpaca",
        "data=local",
        f"data.root={rows}",
    )


def test_a_hub_backbone_offline(refused):
    refused(
        r"cannot fetch FacebookAI/roberta-base at 'main' .*backbone\.path=DIR .*or backbone=minilm",
        "backbone.path=null",
    )


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_backbone_folder_that_lacks_a_file(missing, tiny_roberta, tmp_path, refused):
    folder = shutil.copytree(tiny_roberta, tmp_path / "model")
    (folder / missing).unlink()
    refused(rf"{folder} holds no {missing.replace('model.', '[*][.]')}", f"backbone.path={folder}")


@pytest.mark.parametrize("broken", ["model.safetensors", "config.json"])
def test_a_backbone_with_a_truncated_file(broken, tiny_roberta, tmp_path, refused):
    folder = shutil.copytree(tiny_roberta, tmp_path / "model")
    content = (folder / broken).read_bytes()
    (folder / broken).write_bytes(content[: len(content) // 2])
    refused(rf"{folder}", f"backbone.path={folder}")


def test_a_backbone_folder_that_is_not_there(refused):
    refused(
        r"backbone\.path=/nowhere holds no config\.json: name a transformers checkpoint folder",
        "backbone.path=/nowhere",
    )


def test_texts_longer_than_the_model_reads(root, refused):
    """The tiny model has 64 positions."""
    write_csv(root / "sst2" / "train.csv", [("sentence", "label"), ("good " * 90, 1), ("bad", 0)])
    refused(r"max_length=128.*64", "max_length=128", f"data.root={root}")


# ---- adapters and checkpoints


@pytest.mark.parametrize("source", ["adhoc/sst2/lora-0123456789", "/nowhere"])
def test_an_adapter_that_is_not_there(source, refused):
    refused(
        rf"init_from: \S*{source}\S*/last\.safetensors does not exist; name a finished run as <experiment>/",
        f"init_from={source}",
    )


@pytest.mark.parametrize("content", [b"", b"not an adapter at all", None])
def test_an_adapter_that_is_broken(content, tmp_path, refused):
    path = tmp_path / "adapter" / "last.safetensors"
    path.parent.mkdir()
    if content is None:
        safetensors.torch.save_file({"another.A": torch.zeros(8, 32)}, path)
    else:
        path.write_bytes(content)
    refused(rf"init_from: {path}", f"init_from={path.parent}")


@pytest.mark.parametrize("content", ["empty", "text", "half", "another"])
def test_a_corrupt_checkpoint(content, tiny_overrides, refused):
    choices = {"method": "lora", "task": "sst2", "backbone": "roberta_base", "data": "local", "recipe": "quick"}
    path = Point.of(composed([*tiny_overrides, "seeds=[0,1]"]), choices).output(0, 1) / "checkpoint.pt"
    path.parent.mkdir(parents=True)
    torch.save({"weights": torch.arange(1000)}, path)
    whole = path.read_bytes()
    spoilt = {"empty": b"", "text": b"half a line", "half": whole[: len(whole) // 2], "another": whole}[content]
    path.write_bytes(spoilt)
    refused(rf"{path} is not a readable checkpoint .*delete it to start that run again", "seeds=[0,1]")
    assert path.read_bytes() == spoilt


def test_an_error_of_many_lines_is_told_in_one(refused, monkeypatch):
    def tokenizer(self):
        raise ValueError("none of:\n  (1) this,\n  (2) that")

    monkeypatch.setattr(Encoder, "tokenizer", tokenizer)
    refused(r"^error: none of: \(1\) this, \(2\) that$")


# ---- the command line


def train(tmp_path: Path, *overrides: str) -> subprocess.CompletedProcess:
    """scripts/train.py in a process and a folder of its own."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *overrides]
    environment = os.environ | {"HYDRA_FULL_ERROR": "0"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    assert files(folder) == set()
    return done


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=melroa"], r"Could not find 'method/melroa'[\s\S]*head[\s\S]*lora[\s\S]*melora[\s\S]*mplora"),
        (["method.rnk=3"], r"Could not override 'method\.rnk'"),
        (["method=melora", "method.n=3"], r"(?m)error: method\.n=3 must divide d_in=32 and d_out=32"),
    ],
    ids=["unknown method", "misspelt key", "n=3"],
)
def test_the_command_line_says_it_without_a_traceback(overrides, message, tiny_overrides, tmp_path):
    done = train(tmp_path, *tiny_overrides, *overrides)
    assert done.returncode != 0
    assert re.search(message, done.stdout + done.stderr), done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_one_failed_point_stops_no_other(tiny_overrides, tmp_path):
    """A table of two points, of which the first has no data."""
    table = ["table=mplora_table2", "task=cola,stsb", "method=lora", "experiment=adhoc", "seeds=[0]", "epochs=1"]
    kept = [item for item in tiny_overrides if not item.startswith(("task=", "epochs="))]
    done = train(tmp_path, *kept, *table, "max_train_rows=32", "max_eval_rows=16")
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert "Traceback" not in output
    assert re.search(r"error: data\.root=\S+ has no folder cola/[\s\S]*done +stsb[\s\S]*1 of 2 points failed", output)
    found = [path.parent.name for path in (tmp_path / "results" / "runs" / "adhoc").glob("*/*.json")]
    assert found == ["stsb"]
