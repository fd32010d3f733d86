"""The papers' own numbers, transcribed with their source into results/published/<paper>.csv,
one row per printed cell."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from melora_bench.files import PUBLISHED
from melora_bench.grids.tables import Table

FOLDER = PUBLISHED
COLUMNS = "paper table method variant backbone task metric value spread params seeds selection source note".split()


@dataclass(frozen=True)
class Cell:
    """One printed number: its text, since the number of printed digits matters to a comparison."""

    text: str
    backbone: str
    source: str
    seeds: int | None = None  # that the number is a mean over; None: not known

    @property
    def value(self) -> float:
        return float(self.text)

    @property
    def second_hand(self) -> bool:
        """Whether the number was read elsewhere than in the paper: the file's `source` begins with "secondary" then."""
        return self.source.startswith("secondary")

    @property
    def half_unit(self) -> float:
        """Half a unit of the last printed digit."""
        return 0.5 * 10.0 ** -len(self.text.partition(".")[2])


def load(paper: str, folder: Path = FOLDER) -> pd.DataFrame:
    """All printed cells of a paper, as text. Raises ValueError naming the file for other columns."""
    path = folder / f"{paper}.csv"
    cells = pd.read_csv(path, dtype=str, keep_default_na=False)
    if list(cells.columns) != COLUMNS:
        raise ValueError(f"{path} must have the columns {', '.join(COLUMNS)}")
    return cells


Printed = dict[tuple[str, str, str], Cell]  # by method, variant and task


def index(paper: str, number: str) -> Printed:
    """The cells of one table; those that could not be recovered are left out."""
    cells = load(paper)
    cells = cells[(cells["table"] == number) & (cells["value"] != "")]
    keys = zip(cells["method"], cells["variant"], cells["task"], strict=True)
    seeds = [int(text) if text else None for text in cells["seeds"]]
    values = zip(cells["value"], cells["backbone"], cells["source"], seeds, strict=True)
    return {key: Cell(*value) for key, value in zip(keys, values, strict=True)}


def of_table(table: Table) -> Printed:
    """The published cells of a table; none for a table or figure whose numbers are ours or could not be recovered."""
    return index(table.paper, table.number) if table.paper and table.number else {}
