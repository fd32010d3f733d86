"""Which record stands in which cell of a table."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from melora_bench.external.notices import warn_once
from melora_bench.external.shapes import leaves
from melora_bench.grids.tables import Row, Table
from melora_bench.records.identity import config_hash
from melora_bench.records.records import RunRecord
from melora_bench.results.estimates import Runs


class CellKey(NamedTuple):
    """The place of a cell in a table."""

    backbone: str
    row: int  # its number in the table
    task: str


Cells = dict[CellKey, Runs]


def collect(table: Table, records: list[RunRecord], results: Path) -> Cells:
    """The records by cell; records of no row or task of the table are left out. A row that fixes its own backbone is
    listed under the table's backbone.

    Raises ValueError when two configs or weights claim one cell, or two data sets one task. Where the same data came
    from, a hub or a folder, does not matter.
    """
    cells: Cells = {}
    claims: dict[tuple[str, ...], tuple[object, RunRecord]] = {}
    for record in records:
        for key, row, value in _places(table, record):
            run = (config_hash(_asked(record)), record.model["sha256"])
            cell, data = f"one cell ({row.label}, {key.task})", f"the data of {key.task}"
            _claim(claims, (*map(str, key), value), run, record, cell, results)
            _claim(claims, (key.backbone, key.task), _data(record), record, data, results)
            by_seed = cells.setdefault(key, {}).setdefault(value, {})
            first = by_seed.setdefault(record.seed, record)
            if first is not record:
                warn_once(
                    f"{record.path(results)} is the same run on the same data as {first.path(results)}, from "
                    "elsewhere: the table shows the latter"
                )
    return cells


def lookup(record: RunRecord, key: str) -> object:
    """The record's value of a config key; `method` itself is the group's option."""
    if key in record.choices:
        return record.choices[key]
    value: object = record.config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _places(table: Table, record: RunRecord) -> Iterator[tuple[CellKey, Row, str]]:
    """(key, row, value of the setting that the row selects over) of every cell that a record belongs to."""
    task = record.choices["task"]
    if task not in table.tasks:
        return
    rows = [
        (number, row)
        for number, row in enumerate(table.rows)
        if all(str(lookup(record, name)) in values for name, values in row.choices.items())
    ]
    fixed = [(number, row) for number, row in rows if "backbone" in row.settings]
    for number, row in fixed or rows:
        backbone = table.backbone if fixed else record.model["name"]
        yield CellKey(backbone, number, task), row, str(lookup(record, row.over)) if row.over else ""


def _claim(
    claims: dict[tuple[str, ...], tuple[object, RunRecord]],
    place: tuple[str, ...],
    claim: object,
    record: RunRecord,
    words: str,
    results: Path,
) -> None:
    """Let a record claim a place. Raises ValueError where an earlier record made another claim."""
    other, first = claims.setdefault(place, (claim, record))
    if other != claim:
        raise ValueError(
            f"{record.path(results)} and {first.path(results)} disagree on {words}: they differ in "
            f"{_differing(record, first)}; run one under another experiment=NAME"
        )


def _data(record: RunRecord) -> tuple[object, ...]:
    """The sha256 of each split's files."""
    return tuple(part and tuple(part["sha256"]) for part in record.data.values())


def _asked(record: RunRecord) -> dict[str, object]:
    """The config without the place of the data, which their sha256 identify. The config of a score stays whole: its
    recorded data are its questions, and its config alone says on which data its model was trained."""
    return record.config if "trained_on" in record.config else {**record.config, "data": {}}


def _differing(one: RunRecord, other: RunRecord) -> str:
    """The config keys in which two records differ, with both values; else weights or data."""
    a, b = dict(leaves(_asked(one))), dict(leaves(_asked(other)))
    keys = [f"{key} ({a.get(key)} and {b.get(key)})" for key in sorted(a | b) if a.get(key) != b.get(key)]
    return ", ".join(keys[:5]) + ", .." * (len(keys) > 5) if keys else "weights or data"
