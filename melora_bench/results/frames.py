"""Records and tables from Python, as pandas data frames."""

from pathlib import Path

import pandas as pd

from melora_bench.external.shapes import leaves
from melora_bench.records import records
from melora_bench.records.records import RunRecord
from melora_bench.results.assembled import assemble
from melora_bench.results.latex import latex
from melora_bench.results.lines import NUMBERS
from melora_bench.results.markdown import markdown


class Records(list[RunRecord]):
    """The records of finished runs."""

    def to_frame(self) -> pd.DataFrame:
        """One row per run and epoch: the run, the epoch, `train_loss`, `penalty`, `lr`, a column per metric, and the
        run's config as columns `config.<key>`.

        >>> frame = load_records("results", experiment="audit").to_frame()
        >>> frame.groupby("method").accuracy.max().to_dict()
        {'lora': 0.8, 'mplora': 0.8, 'share_lora': 0.79}
        >>> frame[frame["config.method.n"] == 4].groupby("epoch").size().to_dict()
        {1: 9, 2: 9}
        """
        return pd.DataFrame([row for record in self for row in _rows(record)])


def load_records(results_dir: str | Path = "results", experiment: str | None = None) -> Records:
    """The records below <results_dir>/runs: of one experiment, or of all.

    Raises ValueError for a folder without records of that experiment, and for the first bad record, naming its file.

    >>> len(load_records("results", experiment="audit"))
    54
    """
    runs = Path(results_dir) / "runs"
    experiments = [experiment] if experiment else sorted(path.name for path in runs.glob("*"))
    loaded = Records(record for name in experiments for record in records.load_all(results_dir, name))
    if not loaded:
        raise ValueError(
            f"{runs / (experiment or '')} has no records: give the results_dir and the experiment of finished runs"
        )
    return loaded


class Table:
    """A table made of records, as `make tables` writes it.

    >>> table = Table("audit")
    >>> frame = table.to_frame()
    >>> frame.nlargest(1, "best_mean")[["row", "best_mean", "seeds"]].values.tolist()
    [['LoRA r=8', 77.11, 9]]
    >>> table.markdown().splitlines()[0]
    '# Audit of the comparisons, on movie (not GLUE)'
    >>> table.latex().count("tabular")
    2
    """

    def __init__(self, name: str, results_dir: str | Path | None = None, experiment: str | None = None) -> None:
        """name: of configs/table. results_dir: where the records are, if not in the table's own place. experiment:
        whose records, if not the table's own. Raises ValueError for an unknown table, and for a bad record."""
        self.assembled = assemble(name, results_dir, experiment)

    def to_frame(self) -> pd.DataFrame:
        """The lines of the CSV, with numbers where the CSV has them and <NA> where it has none."""
        frame = pd.DataFrame([line.csv() for line in self.assembled.lines])
        numbers = {name: pd.to_numeric(frame[name]).astype(kind) for name, kind in NUMBERS.items()}
        return frame.assign(**numbers)

    def markdown(self) -> str:
        """The text of the table's .md file."""
        return markdown(self.assembled)

    def latex(self) -> str:
        """The text of the table's .tex file."""
        return latex(self.assembled)


def _rows(record: RunRecord) -> list[dict[str, object]]:
    """A record as one mapping per epoch."""
    run = {
        "run_id": record.run_id,
        "experiment": record.run_id.split("/")[0],
        "task": record.choices["task"],
        "method": record.choices["method"],
        "backbone": record.model["name"],
        "seed": record.seed,
    }
    config = {f"config.{key}": value for key, value in leaves(record.config)}
    measured = ("epoch", "step", "train_loss", "penalty", "lr")
    return [{**run, **{key: entry[key] for key in measured}, **entry["metrics"], **config} for entry in record.epochs]
