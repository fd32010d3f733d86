"""docs/tables.md: every key of a table's YAML, from the fields of `Table` and `Row`."""

import dataclasses
from pathlib import Path

from melora_bench.files import ROOT, write_text
from melora_bench.grids.schema import documented
from melora_bench.grids.tables import Row, Table

PAGE = ROOT / "docs" / "tables.md"
TYPES = {
    "str": "text",
    "bool": "true or false",
    "list[str]": "list of texts",
    "list[Row]": "list of rows",
    "list[list[str | None]]": "list of pairs of texts",
    "dict[str, str]": "mapping of texts",
    "dict[str, str | None]": "mapping of texts",
    "dict[str, Value | list[Value]]": "mapping",
}
EXAMPLE = """\
# @package _global_
defaults:
  - override /task: mrpc
  - override /recipe: small
  - override /hydra/sweeper: grid

experiment: mine
seeds: [0, 1, 2]

table:
  title: "LoRA and MELoRA on MRPC and RTE"
  tasks: [mrpc, rte]
  average: average of 2
  rows:
    - {label: LoRA r=8, settings: {method: lora, method.r: 8}}
    - {label: MELoRA r=8, settings: {method: melora, method.r: 8, method.n: [2, 4, 8]}, over: method.n}

hydra: {mode: MULTIRUN}
"""


def document() -> str:
    """The whole page."""
    lines = [
        "# Tables",
        "",
        "Written by `make docs` from melora_bench/grids/tables.py. A table is a file configs/table/NAME.yaml: `make "
        "sweep TABLE=NAME` trains the runs of its rows that are missing, and writes results/tables/NAME.md, .csv and "
        ".tex. Unknown keys are refused.",
        "",
        "```yaml",
        EXAMPLE + "```",
        "",
        "Any key of configs/train.yaml may stand beside `table`: it holds for every run, unless a row sets it itself. "
        "What `settings` lists is multiplied with `tasks`: the file above has 2 tasks x (1 + 3) = 8 points of 3 seeds "
        "each.",
        "",
        "## A table",
        "",
        *_list(Table),
        "",
        "## A row",
        "",
        *_list(Row),
    ]
    return "\n".join(lines) + "\n"


def write_docs() -> Path:
    """Write docs/tables.md; returns its path."""
    return write_text(PAGE, document())


def _list(cls: type) -> list[str]:
    """One item per key: its name, type, whether it is needed, and what it says."""
    texts = documented(cls)
    return [f"* `{item.name}` ({_type(item)}): {texts[item.name]}" for item in dataclasses.fields(cls)]


def _type(item: dataclasses.Field[object]) -> str:
    """The type of a key in words, and its default."""
    name = item.type.__name__ if isinstance(item.type, type) and not hasattr(item.type, "__args__") else str(item.type)
    name = name.replace("melora_bench.grids.tables.", "").removesuffix(" | None")
    words = TYPES.get(name, "mapping")
    if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
        return f"{words}, needed"
    if item.default is dataclasses.MISSING or item.default is None:
        return words
    return f"{words}, default {str(item.default).lower()}"
