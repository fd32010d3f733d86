"""A table's part on one backbone, as the texts that its Markdown, LaTeX and HTML share."""

from dataclasses import dataclass

from omegaconf import OmegaConf

from melora_bench.files import CONFIGS, options
from melora_bench.grids.tables import Table
from melora_bench.results.cells import Cells
from melora_bench.results.estimates import ESTIMATES, any_record
from melora_bench.results.lines import TableLine


@dataclass(frozen=True, kw_only=True)
class PrintedLine:
    """One printed line of a table: its label, then a text for each further column."""

    label: str
    # Of published numbers: the paper's backbone, and whether they were read elsewhere than in the paper. Of ours:
    # empty.
    published: str = ""
    texts: list[str]


@dataclass(frozen=True, kw_only=True)
class Section:
    """The lines of one backbone, and the cells behind them."""

    table: Table
    backbone: str
    lines: list[TableLine]
    cells: Cells

    @property
    def title(self) -> str:
        return f"{self.table.title} ({self.backbone})"

    @property
    def tasks(self) -> list[str]:
        """The tasks of the table that have a record here."""
        recorded = {key.task for key in self.cells}
        return [task for task in self.table.tasks if task in recorded]

    @property
    def usual_seeds(self) -> int:
        """The number of seeds of every cell that does not print a number of its own."""
        return max((line.seeds for line in self.lines), default=0)

    @property
    def heading(self) -> str:
        """The backbone, and the usual number of seeds."""
        count = self.usual_seeds
        return f"{self.backbone}, {count} seed{'s' * (count > 1)}" if count else self.backbone

    @property
    def seen_tasks(self) -> set[str]:
        """The tasks whose texts the backbone's training saw, as its records or, where they knew less, its YAML say."""
        first = {key.task: any_record(runs) for key, runs in self.cells.items()}
        seen = {task for task, record in first.items() if record and task in record.config["backbone"]["seen"]}
        if self.backbone in options("backbone"):
            seen |= {*OmegaConf.load(CONFIGS / "backbone" / f"{self.backbone}.yaml").seen} & first.keys()
        return seen

    @property
    def seen_note(self) -> str:
        return f"† the training of {self.backbone} saw texts of these tasks, or likely did."

    def block(self, estimate: str) -> tuple[list[str], list[PrintedLine]]:
        """(column names, lines) of one estimate. Published numbers stand under the estimate that the papers use.

        Columns: method, parameters, the scores, then the certainty of their average and the speed, where the table has
        them.
        """
        table, seen = self.table, self.seen_tasks
        speed = ["rows/s"] if table.speed else []
        certain = ["95 %", f"beats {table.rival}"] if any(line.certainty for line in self.lines) else []
        names = [f"{name} †" if name in seen else name for name in table.columns]
        printed = []
        for label in dict.fromkeys(line.label for line in self.lines):
            row = {line.task: line for line in self.lines if line.label == label}
            printed.append(PrintedLine(label=label, texts=self._ours(row, estimate, bool(certain))))
            if estimate == "best" and (paper := _paper(row)):
                texts = [cell.text if (cell := row[name].published) else "" for name in table.columns]
                printed.append(
                    PrintedLine(label=label, published=paper, texts=["", *texts, *[""] * len(certain + speed)])
                )
        return ["method", "adapter params", *names, *certain, *speed], printed

    def _ours(self, row: dict[str, TableLine], estimate: str, certain: bool) -> list[str]:
        """The texts of one row, whose lines are given by task and average."""
        lines = [row[name] for name in self.table.columns]
        params = next((f"{line.adapter_params:,}" for line in lines if line.adapter_params is not None), "")
        scores = [line.scores[estimate].text(self.usual_seeds) if line.scores else "" for line in lines]
        texts = [params, *scores]
        if certain:
            last = lines[-1].certainty.get(estimate)
            texts += [last.interval, last.beats_lora] if last else ["", ""]
        return [*texts, " / ".join(line.speed for line in lines if line.speed)] if self.table.speed else texts


def _paper(row: dict[str, TableLine]) -> str:
    """The backbone of a row's published numbers, and whether one of them was read elsewhere than in the paper."""
    cells = [line.published for line in row.values() if line.published]
    return cells[0].backbone + ", second-hand" * any(cell.second_hand for cell in cells) if cells else ""


def estimate_titles(table: Table) -> dict[str, str]:
    """The estimates that say different things of a table.
    A model that is scored once, after training, has no last epoch."""
    if not table.trained_on:
        return ESTIMATES
    return {
        "best": "adapters of the lowest validation loss; r or n by the reported score, as the papers select",
        "split": "the same, r or n chosen on one half of the questions and scored on the other, both ways",
    }


def judged(line: TableLine) -> str:
    """A line of the CSV and its verdict in words."""
    difference = f" (ours - published {line.difference})" if line.difference else ""
    return f"{line.label}, {line.task}: {line.verdict}{difference}"
