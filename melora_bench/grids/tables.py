"""What a table's YAML (configs/table/NAME.yaml) can say: its rows, tasks and figures.
docs/tables.md is written from here."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf

from melora_bench.files import CONFIGS, options
from melora_bench.grids.schema import checked, unknown

Value = bool | int | float | str | None
PUBLISHED = ("single", "best", "mean", "method")
# The method of a row that scores the backbone as it is, and the name that records of such scores have for it: a
# language model has no head that could be trained.
UNTRAINED, RECORDED_AS = "none", "head"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table: the runs that it is made of."""

    # The name of the row; no two rows of a table share one.
    label: str
    # What defines the runs of the row: `method`, and any other key of a run's config with its value; of the key that
    # `over` names, a list of values. `method: none` scores the backbone as it is, and there is nothing to train.
    settings: dict[str, Value | list[Value]]
    # The setting over whose values the row reports the best one and the mean, such as `method.n`.
    over: str | None = None
    # The row's published numbers: the `variant` in results/published/PAPER.csv of each kind of line, `single` or, with
    # `over`, `best` and `mean`; and `method`, where that file calls the method otherwise.
    published: dict[str, str] = field(default_factory=dict)
    # The label of the row with which the row is compared; null: the table's first row of LoRA.
    reference: str | None = None

    @property
    def untrained(self) -> bool:
        """Whether the row scores the backbone as it is, so that there is nothing to train."""
        return self.settings["method"] == UNTRAINED

    @property
    def method(self) -> str:
        """The name of the row's method as records have it: an option of configs/method."""
        return RECORDED_AS if self.untrained else str(self.settings["method"])

    @property
    def choices(self) -> dict[str, list[str]]:
        """The values of every setting, as the texts of a command line."""
        return {name: self.values(name) for name in self.settings}

    def values(self, name: str | None) -> list[str]:
        """The values of one setting as texts; one empty text for a key that the row does not set."""
        if name == "method" and self.untrained:
            return [RECORDED_AS]
        value = self.settings.get(name, "") if name else ""
        return [str(item) for item in value] if isinstance(value, list) else [str(value)]

    @classmethod
    def of(cls, values: object, place: str) -> "Row":
        """The row that a YAML's `values` describe. Raises ValueError, of one line that begins with `place`."""
        row = cls(**checked(cls, values, place))
        lists = [name for name, value in row.settings.items() if isinstance(value, list)]
        if "method" not in row.settings:
            raise ValueError(f"{place}settings.method is missing: name an option of configs/method")
        if lists != [row.over] * bool(row.over):
            raise ValueError(
                f"{place}settings has a list of values for {', '.join(lists) or 'no key'}: it must be for the key that "
                f"over names, which is {row.over}, and for no other"
            )
        for name in row.published:
            if name not in PUBLISHED:
                raise ValueError(f"{place}published.{unknown(name, PUBLISHED)}")
        return row


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table: the grid of its runs, and what is made of their records."""

    # The heading of the table and of its figures.
    title: str
    # The columns: options of configs/task.
    tasks: list[str]
    # The rows, each a mapping with the keys of a row, below.
    rows: list[Row]
    # The paper whose numbers stand beside ours, in results/published/PAPER.csv.
    paper: str | None = None
    # The table or figure of the paper, as in the column `table` of that file.
    number: str | None = None
    # The name of a last column, the mean over all tasks, as in the column `task` of that file; null: no such column.
    average: str | None = None
    # The backbone of the published numbers: an option of configs/backbone.
    backbone: str = "roberta_base"
    # Keys in which a run may differ from the paper's and yet be held against it, such as `precision`, with the reason.
    # Every other key of a run's identity counts.
    not_compared: dict[str, str] = field(default_factory=dict)
    # The task on which the models are trained before they are scored on `tasks`; null: each column has runs of its own.
    trained_on: str | None = None
    # By task, the task from whose adapters its runs start; read by `init_from: ${table.init_from.${task.name}}`.
    init_from: dict[str, str | None] = field(default_factory=dict)
    # Figures of the score against a setting: pairs of the setting on the x axis and the setting of whose values each
    # has a line (null: one line).
    sweeps: list[list[str | None]] = field(default_factory=list)
    # Whether there is a figure of the singular values above 0.1 of each layer's update.
    spectrum: bool = False
    # Whether the audit's verdicts stand below the table; they need the rows of audit.yaml.
    audit: bool = False
    # Whether there is a column of training rows per second.
    speed: bool = False
    # Beside `table` in the file: the folder of the records.
    experiment: str
    # Beside `table` in the file: where the records are; null: the committed results, which `make tables` writes anew.
    results_dir: str | None = None

    @property
    def trained_tasks(self) -> list[str]:
        """The tasks of the runs: the columns, or the one task that the models are trained on before they are scored."""
        return [self.trained_on] if self.trained_on else self.tasks

    @property
    def columns(self) -> list[str]:
        """The tasks, then the average where the table has one."""
        return [*self.tasks, *([self.average] if self.average else [])]

    @property
    def narrowing(self) -> set[str]:
        """The keys by which a command line narrows the table."""
        return {name for row in self.rows for name in row.settings if name.split(".")[0] == "method"} | {"task"}

    def reference(self, row: Row) -> str | None:
        """The label of the row with which `row` is compared: the one that it names, else the table's first of LoRA."""
        return row.reference or next((other.label for other in self.rows if other.method == "lora"), None)

    @property
    def rival(self) -> str | None:
        """With what the rows are compared, in words."""
        labels = {self.reference(row) for row in self.rows}
        return labels.pop() if len(labels) == 1 else "its LoRA"

    @classmethod
    def of(cls, node: object, place: str, *, experiment: str, results_dir: str | None = None) -> "Table":
        """The table that the node `table` of a YAML describes. place: the file, with which a message begins.

        Raises ValueError, of one line, for a key that is unknown or missing, for a value of another type than its
        key's, and for values that contradict each other.
        """
        if isinstance(node, Mapping) and "rows" in node:
            if not isinstance(node["rows"], list):
                raise ValueError(f"{place}: rows={str(node['rows'])[:60]} must be a list")
            node = {**node, "rows": [Row.of(row, f"{place}: rows.{i}.") for i, row in enumerate(node["rows"])]}
        table = cls(**checked(cls, node, f"{place}: ", experiment=experiment, results_dir=results_dir))
        labels = Counter(row.label for row in table.rows)
        if not table.rows or not table.tasks:
            raise ValueError(f"{place}: rows and tasks must not be empty")
        if twice := [label for label, count in labels.items() if count > 1]:
            raise ValueError(f"{place}: the label {twice[0]!r} must be of one row, not of several")
        if missing := {row.reference for row in table.rows if row.reference} - labels.keys():
            raise ValueError(f"{place}: reference {min(missing)!r} must be the label of a row")
        if (table.paper is None) != (table.number is None):
            raise ValueError(f"{place}: paper and number must be given together, or neither")
        if any(len(pair) != 2 or pair[0] is None for pair in table.sweeps):
            raise ValueError(f"{place}: sweeps must be pairs of settings, of which the second may be null")
        return table


def load_table(name: str) -> Table:
    """The table of configs/table/<name>.yaml. Raises ValueError naming the tables there are, and as `Table.of` does."""
    if name not in options("table"):
        raise ValueError(f"table {name!r} is unknown: there are {', '.join(sorted(options('table')))}")
    config: Any = OmegaConf.load(CONFIGS / "table" / f"{name}.yaml")
    return composed_table(config, name, results_dir=config.get("results_dir"))


def composed_table(config: DictConfig, name: str, results_dir: str | None = None) -> Table:
    """The table of a config that Hydra composed with table=<name>. Raises ValueError as `Table.of` does."""
    content: Any = OmegaConf.to_container(OmegaConf.masked_copy(config, ["table", "experiment"]))
    place = f"configs/table/{name}.yaml"
    return Table.of(content.get("table"), place, experiment=content.get("experiment"), results_dir=results_dir)
