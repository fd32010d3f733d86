"""The files that benchmarks are read from: rows of parquet and of JSON lines, and the texts in them."""

import reprlib
from pathlib import Path

import pyarrow.parquet as pq

from melora_bench.external.reading import is_text, read_jsonl, reading


def read_parquet(folder: Path, config: str, split: str, columns: list[str]) -> tuple[list[dict], list[Path]]:
    """The rows of one split, and its files: `<config>/<split>-*.parquet`, or as refs/convert/parquet names them.

    Raises ValueError naming what is missing: every file, one of several, or a column.
    """
    files = sorted(folder.glob(f"{config}/{split}-*.parquet")) or sorted(folder.glob(f"{config}/{split}/*.parquet"))
    if not files:
        raise ValueError(f"{folder} has no {config}/{split}-*.parquet: is the copy of the hub's dataset complete?")
    # train-00000-of-00002
    parts = files[0].stem.partition("-of-")[2]
    if parts.isdigit() and len(files) != int(parts):
        raise ValueError(f"{folder} has {len(files)} of {int(parts)} files {config}/{split}-*.parquet")
    rows: list[dict] = []
    for path in files:
        with reading(path), pq.ParquetFile(path) as file:
            there = file.schema_arrow.names
            absent = [name for name in columns if name not in there]
            rows += [] if absent else file.read(columns).to_pylist()
        if absent:
            raise ValueError(f"{path} has no column {absent[0]!r}; it has {reprlib.repr(there)[1:-1]}")
    return rows, files


def read_jsonl_gz(path: Path) -> list[dict]:
    """The rows of a gzipped file with one JSON object per line. Raises ValueError naming the file."""
    if not path.is_file():
        raise ValueError(f"{path.parent} has no {path.name}")
    rows = read_jsonl(path)
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} must have one object per line")
    return rows


def text_of(row: object, key: str, place: str) -> str:
    """The text under `key`. Raises ValueError with the place for a row without it, or with something else there."""
    if not isinstance(row, dict) or not is_text(row.get(key)):
        value = row.get(key) if isinstance(row, dict) else row
        raise ValueError(f"{place}: {key} is {reprlib.repr(value)}, not a text")
    return row[key]
