"""What the tests of several modules share of whole runs: their commands, their results, files to read, and
arithmetic."""

import ast
import csv
import json
import operator
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import composed
from omegaconf import OmegaConf
from safetensors.torch import load_file

from melora_bench.files import ROOT
from melora_bench.methods.lora import LoRA
from melora_bench.records import records
from melora_bench.training.points import Point

TRAIN = [sys.executable, str(ROOT / "scripts" / "train.py")]
NO_DROPOUT = ["method.lora_dropout=0", "backbone.dropout=0"]
TIMES = ("train_seconds", "eval_seconds")
# The files of an exported plain model.
MERGED = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def without_dropout(method: str) -> list[str]:
    """The overrides that turn dropout off; some methods have no dropout of their own."""
    return NO_DROPOUT if "lora_dropout" in composed([f"method={method}"]).method else NO_DROPOUT[1:]


def curves(path: Path) -> list[dict]:
    """A record's epochs without their times."""
    return [{key: value for key, value in entry.items() if key not in TIMES} for entry in records.load(path).epochs]


def adapters(output_dir: Path, kind: str = "last") -> dict[int, dict[str, torch.Tensor]]:
    """{seed: the adapter file's tensors} of every run under an output directory."""
    files = output_dir.glob(f"runs/*/*/*/{kind}.safetensors")
    return {int(re.search(r"-s(\d+)$", path.parent.name)[1]): load_file(path) for path in files}


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    """Whether two adapters have the same tensors, bit by bit."""
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def poison_replica_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """LoRA's second replica gets a NaN before step 6."""
    real = LoRA.before_forward

    def poison(self, step):
        if step == 6:
            next(iter(self.layers.values())).A.data[1] = float("nan")
        real(self, step)

    monkeypatch.setattr(LoRA, "before_forward", poison)


def one_quickly(values: Iterable) -> list:
    """The values as parameters of a test: the first in `make test`, the others in `make test-slow`."""
    first, *others = values
    return [first, *(pytest.param(value, marks=pytest.mark.slow) for value in others)]


def point(overrides: list[str]) -> Point:
    """The point of a training command."""
    cfg = composed(overrides, return_hydra_config=True)
    return Point.of(OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"]), cfg.hydra.runtime.choices)


def write_columns(path: Path, columns: dict[str, list]) -> Path:
    """Write columns in the format that the ending of `path` names; returns `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = list(zip(*columns.values(), strict=True))
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
    elif path.suffix == ".jsonl":
        lines = [json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([tuple(columns), *rows])
    return path


OPERATIONS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
}
FUNCTIONS = {"min": min, "max": max}


def calculated(formula: str, values: dict[str, float]) -> float:
    """The value of a formula of numbers, names of `values`, + - * / // **, parentheses, min and max.

    Raises KeyError for a name or an operation beside these, and ValueError for anything else.
    """

    def value(node: ast.expr) -> float:
        match node:
            case ast.Constant(value=int() | float() as number):
                return number
            case ast.Name(id=name):
                return values[name]
            case ast.BinOp(left=left, op=operation, right=right):
                return OPERATIONS[type(operation)](value(left), value(right))
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
                return FUNCTIONS[name](*map(value, arguments))
        raise ValueError(f"{ast.unparse(node)!r} in {formula!r} is no arithmetic")

    return value(ast.parse(formula, mode="eval").body)
