"""The rows of one split of a text task, read from its files and checked."""

import reprlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from melora_bench.external.reading import is_text, read_jsonl, reading
from melora_bench.files import sha256_file
from melora_bench.tasks.base import Source


def _read_jsonl(path: Path, texts: list[str]) -> pd.DataFrame:
    rows = read_jsonl(path)
    wrong = [row for row in rows if not isinstance(row, dict)]
    if wrong:
        raise ValueError(f"{path} must have one object of columns per line, not {reprlib.repr(wrong[0])}")
    return pd.DataFrame(rows, dtype=object)


def _read_csv(path: Path, texts: list[str]) -> pd.DataFrame:
    # A text may be the word "None", "NA" or a number: it stays as it stands.
    with reading(path):
        table = pd.read_csv(path, dtype=dict.fromkeys(texts, str), keep_default_na=False, encoding="utf-8-sig")
        if not isinstance(table.index, pd.RangeIndex):  # pandas takes the first column for an index then
            raise ValueError("rows have more cells than the header: texts with a comma need quotation marks")
        return table


def _read_parquet(path: Path, texts: list[str]) -> pd.DataFrame:
    with reading(path):
        return pd.read_parquet(path)


READERS = {".parquet": _read_parquet, ".jsonl": _read_jsonl, ".csv": _read_csv}


@dataclass(frozen=True, kw_only=True)
class TextRows:
    """The rows of one split."""

    texts: list[list[str]]  # per text column
    labels: np.ndarray  # (rows,) float64
    origin: dict  # for the record: rows, sha256 of each file, repo and commit or file name


def load_rows(
    source: Source, task: str, split: str, texts: list[str], limit: int | None, optional: bool
) -> TextRows | None:
    """Read the text columns and `label` of one split; the first `limit` rows of a fixed shuffle if a limit is given.

    Returns None for a missing split that is optional. Raises ValueError, naming the file, for a missing file or column,
    an unreadable file, an empty split, and a text or label that is none.
    """
    files = source.split_files(task, split)
    if not files.paths:
        if optional:
            return None
        raise ValueError(files.absent)
    file = files.paths[0]
    parts = [READERS[path.suffix](path, texts) for path in files.paths]
    with reading(file):
        table = pd.concat(parts, ignore_index=True)
    if table.empty:
        raise ValueError(f"{file} has no rows: the {split} split of {task} is empty")
    for name in (*texts, "label"):
        if name not in table:
            raise ValueError(f"{file} has no column {name!r}; it has {reprlib.repr(list(table.columns))[1:-1]}")
        if list(table.columns).count(name) > 1:
            raise ValueError(f"{file} has several columns {name!r}")
    for name in texts:
        wrong = [row for row, text in enumerate(table[name]) if not is_text(text)]
        if wrong:
            value = reprlib.repr(table[name].iloc[wrong[0]])
            raise ValueError(f"{file}: {name} is {value} in row {wrong[0]}, not a text")
    scalars = table["label"].where(table["label"].map(np.isscalar))  # to_numeric raises for a list
    with reading(file):
        labels = pd.to_numeric(scalars, errors="coerce").astype(np.float64)
    if labels.isna().any():
        row = int(labels.isna().argmax())
        raise ValueError(f"{file}: label is {reprlib.repr(table['label'].iloc[row])} in row {row}, not a number")
    if limit is not None and limit < len(table):
        chosen = np.random.default_rng(0).permutation(len(table))[:limit]
        table, labels = table.iloc[chosen], labels.iloc[chosen]
    origin = {"rows": len(table), "sha256": [sha256_file(path) for path in files.paths], **files.origin}
    return TextRows(texts=[table[name].tolist() for name in texts], labels=labels.to_numpy(), origin=origin)
