"""A table with everything that its records say: what its Markdown, LaTeX, CSV, figures and report are made of."""

import dataclasses
import glob
from dataclasses import dataclass
from pathlib import Path

from melora_bench.external import shapes
from melora_bench.files import ROOT
from melora_bench.grids.tables import Table, load_table
from melora_bench.records import records
from melora_bench.results import published
from melora_bench.results.cells import Cells, collect
from melora_bench.results.lines import TableLine
from melora_bench.results.scoring import record_obstacles, table_lines
from melora_bench.results.sections import Section
from melora_bench.results.verdicts import in_words


@dataclass(frozen=True, kw_only=True)
class Assembled:
    """A table, the cells of its records, and the lines of its CSV."""

    table: Table
    results: Path
    cells: Cells
    lines: list[TableLine]
    obstacles: list[str]  # what keeps records from being held against the paper, in words

    @property
    def is_empty(self) -> bool:
        """Whether there is no number at all, neither ours nor published."""
        return not self.cells and not published.of_table(self.table)

    @property
    def sections(self) -> list[Section]:
        """The table's parts, one per backbone."""
        return [self._section(backbone) for backbone in dict.fromkeys(line.backbone for line in self.lines)]

    def _section(self, backbone: str) -> Section:
        lines = [line for line in self.lines if line.backbone == backbone]
        cells = {key: runs for key, runs in self.cells.items() if key.backbone == backbone}
        return Section(table=self.table, backbone=backbone, lines=lines, cells=cells)


def assemble(name: str, results_dir: str | Path | None = None, experiment: str | None = None) -> Assembled:
    """The table `name` of the records of its own experiment, or of another that its sweep was given.

    Raises ValueError for an experiment that names no folder of records, for a bad record, or for two configs that claim
    one cell.
    """
    if experiment is not None and not shapes.name(experiment):
        raise ValueError(
            f"experiment {experiment!r} must be {shapes.name.__doc__}: it names a folder and the table's files"
        )
    table = load_table(name)
    results = Path(results_dir or ROOT / (table.results_dir or "results"))
    if experiment not in (None, table.experiment):
        table = dataclasses.replace(table, title=f"{table.title}, experiment {experiment}")
    cells = collect(table, records.load_all(results, experiment or table.experiment), results)
    obstacles = record_obstacles(table, cells)
    texts = sorted({in_words(of_record) for of_record in obstacles.values() if of_record})
    return Assembled(
        table=table, results=results, cells=cells, lines=table_lines(table, cells, obstacles), obstacles=texts
    )


def with_numbers(names: list[str], results_dir: str | None = None) -> list[str]:
    """Those tables of the committed results that have published numbers or a record."""
    runs = Path(results_dir or ROOT / "results") / "runs"
    tables = {name: load_table(name) for name in names}
    return [
        name
        for name, table in tables.items()
        if not table.results_dir and (published.of_table(table) or any((runs / table.experiment).glob("*/*.json")))
    ]


def experiments(name: str, results_dir: str | Path) -> list[str]:
    """The experiments that hold records of a table's points: its own first, then those of trials (`grids.trials`)."""
    experiment, runs = load_table(name).experiment, Path(results_dir) / "runs"
    trials = sorted(runs.glob(f"{glob.escape(experiment)}-*"))
    return [path.name for path in (runs / experiment, *trials) if path.is_dir()]
