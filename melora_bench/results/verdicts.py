"""Whether ours agrees with the published number, and what keeps a record from being held against it."""

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Literal

from melora_bench.grids.tables import Row, Table
from melora_bench.records.records import RunRecord
from melora_bench.results.estimates import Score
from melora_bench.results.published import Cell
from melora_bench.results.reference import differing
from melora_bench.results.stats import margin

WORDS = {"agrees": "agrees", "differs": "differs", "too_few_seeds": "too few seeds", "not_comparable": "not comparable"}


@dataclass(frozen=True)
class Obstacle:
    """One reason why a record cannot be held against the paper: another backbone, a setting other than the paper's,
    another data set, or a split that is missing or read from another file. `text` is for people."""

    kind: Literal["backbone", "setting", "data", "split"]
    text: str
    task: str = ""  # in an average over tasks


Obstacles = tuple[Obstacle, ...]


@dataclass(frozen=True)
class Verdict:
    """Ours against a published number; as a text it is for people."""

    kind: Literal["agrees", "differs", "too_few_seeds", "not_comparable"]
    why: Obstacles = ()  # of what is not comparable

    def __str__(self) -> str:
        return f"{WORDS[self.kind]}: {in_words(self.why)}" if self.why else WORDS[self.kind]


def judge(score: Score, cell: Cell, obstacles: Obstacles = ()) -> Verdict:
    """The verdict on a score in percent. It agrees if the difference is within `stats.margin` and half a printed unit.
    A paper whose seeds are not known has as many as we."""
    if obstacles:
        return Verdict("not_comparable", obstacles)
    count = len(score.values)
    if count < 3 or score.sd is None:
        return Verdict("too_few_seeds")
    agrees = abs(score.mean - cell.value) <= margin(score.sd, count, cell.seeds or count) + cell.half_unit
    return Verdict("agrees" if agrees else "differs")


def in_words(obstacles: Obstacles) -> str:
    """Obstacles as one text: those of several tasks task by task."""
    parts = []
    for task, group in itertools.groupby(obstacles, key=lambda obstacle: obstacle.task):
        parts.append(f"{task} {', '.join(one.text for one in group)}".lstrip())
    return "; ".join(parts)


def on_task(task: str, obstacles: Obstacles) -> Obstacles:
    """The obstacles of one task's cell as part of an average over tasks."""
    return tuple(dataclasses.replace(obstacle, task=task) for obstacle in obstacles)


def obstacles_of(record: RunRecord, table: Table, row: Row) -> Obstacles:
    """Why a record of a row cannot be held against the paper: another backbone, other data, or a setting other than the
    paper's; empty: nothing. What the row sets is the paper's, and the table's `not_compared` is set apart."""
    if not table.paper:
        return ()
    backbone = str(row.settings.get("backbone", table.backbone))
    backbones = sorted({record.choices["backbone"], record.model["name"]} - {backbone})
    obstacles = [Obstacle("backbone", f"backbone {name}") for name in backbones]
    differences = differing(record, table, {*row.settings, *table.not_compared})
    obstacles += [Obstacle("setting", text) for text in differences]
    for split, part in record.data.items():
        if part is None or part.get("file", split) != split:
            obstacles.append(Obstacle("split", f"{split} {'missing' if part is None else 'from ' + part['file']}"))
        elif part.get("label", "").startswith("local "):
            obstacles.append(Obstacle("data", part["label"]))
    return tuple(obstacles)
