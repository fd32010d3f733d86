"""One line of a table's CSV, which is what everything printed or drawn of a table is made of."""

from dataclasses import dataclass, field
from typing import Any

from melora_bench.results.estimates import ESTIMATES, Certainty, Kind, Scores
from melora_bench.results.published import Cell
from melora_bench.results.verdicts import Verdict

# The columns of the CSV that hold numbers, by pandas' type for them.
NUMBERS: dict[str, Any] = {
    **dict.fromkeys(("adapter_params", "seeds"), "Int64"),
    **dict.fromkeys([f"{name}_{what}" for name in ESTIMATES for what in ("mean", "sd")], "Float64"),
    **dict.fromkeys(("published", "difference", "rows_per_second"), "Float64"),
}


@dataclass(frozen=True, kw_only=True)
class TableLine:
    """One line of the CSV: one row on one backbone, for a task or for the average over tasks."""

    backbone: str
    number: int  # of the row in its table
    label: str  # of the row, with what the kind adds
    kind: Kind
    task: str  # or the name of the table's average
    chosen: str = ""  # the value that the papers' selection picks
    metric: str = ""
    adapter_params: int | None = None
    rows_per_second: float | None = None  # of whole packed runs, in training
    scores: Scores = field(default_factory=dict)  # empty until every value that the row lists has a record
    certainty: dict[str, Certainty] = field(default_factory=dict)  # by estimate; of an average only
    published: Cell | None = None
    verdict: Verdict | None = None

    @property
    def seeds(self) -> int:
        """How many seeds the scores have."""
        return len(self.scores["best"].values) if self.scores else 0

    @property
    def difference(self) -> str:
        """Ours minus the published number in points, unless ours is a score on other data than the paper's."""
        if not self.verdict or not self.published or any(one.kind == "data" for one in self.verdict.why):
            return ""
        return f"{self.scores['best'].mean - self.published.value:+.2f}"

    @property
    def speed(self) -> str:
        return "" if self.rows_per_second is None else f"{self.rows_per_second:.0f}"

    def csv(self) -> dict[str, str]:
        """The line by the column names of the CSV."""
        columns = {
            "backbone": self.backbone,
            "row": self.label,
            "task": self.task,
            "chosen": self.chosen,
            "metric": self.metric,
            "adapter_params": "" if self.adapter_params is None else str(self.adapter_params),
            "seeds": str(self.seeds or ""),
        }
        for name in ESTIMATES:
            score, certain = self.scores.get(name), self.certainty.get(name)
            columns[f"{name}_mean"] = f"{score.mean:.2f}" if score else ""
            columns[f"{name}_sd"] = f"{score.sd:.2f}" if score and score.sd is not None else ""
            columns[f"{name}_interval"] = certain.interval if certain else ""
            columns[f"{name}_beats_lora"] = certain.beats_lora if certain else ""
        return columns | {
            "published": self.published.text if self.published else "",
            "difference": self.difference,
            "verdict": str(self.verdict or ""),
            "published_backbone": self.published.backbone if self.published else "",
            "published_source": self.published.source if self.published else "",
            "rows_per_second": self.speed,
        }
