"""Write the papers' tables from records: ours beside the published numbers, with seeds, spread and a verdict."""

import re
from pathlib import Path

import pandas as pd

from melora_bench.files import write_text
from melora_bench.results.assembled import Assembled, assemble
from melora_bench.results.latex import latex
from melora_bench.results.markdown import markdown


def regenerate(
    name: str, results_dir: str | Path | None = None, experiment: str | None = None
) -> tuple[Path, Path, Path]:
    """Write <results_dir>/tables/<name>.csv, .md and .tex from the records of its experiment, or another, which then is
    the name; returns the paths.

    Raises ValueError as `assemble` does, and for a table without any number; the old files then stay.
    """
    return write(assemble(name, results_dir, experiment), name, experiment)


def write(assembled: Assembled, name: str, experiment: str | None) -> tuple[Path, Path, Path]:
    """Write the files of the table `name` as `regenerate` does."""
    if assembled.is_empty:
        raise ValueError(f"{assembled.results} has no records of {name}: run scripts/train.py table={name} first")
    texts = {"csv": csv(assembled), "md": markdown(assembled), "tex": latex(assembled)}
    folder = assembled.results / "tables"
    paths = [write_text(folder / f"{experiment or name}.{end}", text) for end, text in texts.items()]
    return paths[0], paths[1], paths[2]


def csv(assembled: Assembled) -> str:
    """The lines of a table as CSV, every number as it is printed."""
    frame = pd.DataFrame([line.csv() for line in assembled.lines])
    text: str = frame.map(_cell).to_csv(index=False, lineterminator="\n")
    return text


def _cell(value: object) -> object:
    """A cell of the CSV: a spreadsheet runs a text that begins like a formula, unless it is a number or an interval."""
    formula = isinstance(value, str) and re.match(r"[=+\-@\t\r]", value)
    is_number = isinstance(value, str) and re.fullmatch(r"[+-]?[\d.]+( to [+-]?[\d.]+)?", value)
    return f"'{value}" if formula and not is_number else value
