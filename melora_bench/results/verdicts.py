"""Whether ours agrees with the published number, and what keeps a record from being held against it."""

import dataclasses
import functools
import itertools
from dataclasses import dataclass
from typing import Any, Literal

from omegaconf import OmegaConf

from melora_bench.files import CONFIGS, options
from melora_bench.grids.tables import Row, Table
from melora_bench.records.records import RunRecord
from melora_bench.results.cells import lookup
from melora_bench.results.estimates import Score
from melora_bench.results.published import Cell

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
    """The verdict on a score in percent. It agrees if |difference| <= 2 sd / sqrt(seeds) + half a printed unit."""
    if obstacles:
        return Verdict("not_comparable", obstacles)
    count = len(score.values)
    if count < 3 or score.sd is None:
        return Verdict("too_few_seeds")
    agrees = abs(score.mean - cell.value) <= 2 * score.sd / count**0.5 + cell.half_unit
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
    """Why a record of a row cannot be held against the paper; empty: nothing. What the row sets is the paper's."""
    if not table.paper:
        return ()
    task = table.trained_on or record.choices["task"]
    expected = dict(_settings(table.paper, task, record.choices["method"]) if record.choices["recipe"] else {})
    expected |= _of_task("task", record.choices["task"])
    if "trained_on" in record.config:  # a score
        expected |= {"task.limit": None, "task.which": "best"}
    if record.config.get("trained_on"):
        expected |= _of_task("trained_on", task)
    backbones = sorted({record.choices["backbone"], record.model["name"]} - {table.backbone})
    obstacles = [Obstacle("backbone", f"backbone {name}") for name in backbones]
    obstacles += [
        Obstacle("setting", f"{key} {value} instead of {wanted}")
        for key, wanted in expected.items()
        if key not in row.settings and (value := lookup(record, key)) != wanted
    ]
    for split, part in record.data.items():
        if part is None or part.get("file", split) != split:
            obstacles.append(Obstacle("split", f"{split} {'missing' if part is None else 'from ' + part['file']}"))
        elif part.get("label", "").startswith("local "):
            obstacles.append(Obstacle("data", part["label"]))
    return tuple(obstacles)


@functools.cache
def _settings(paper: str, task: str, method: str) -> dict[str, Any]:
    """The paper's settings by config key: its recipe, the method's YAML, and what it leaves alone."""
    recipe = OmegaConf.load(CONFIGS / "recipe" / paper / f"{task}.yaml")
    values: Any = OmegaConf.load(CONFIGS / "method" / f"{method}.yaml")
    for key in ("_target_", "version", "target_modules"):
        del values[key]
    merged: Any = OmegaConf.to_container(OmegaConf.merge(recipe, {"method": values}), resolve=True)
    merged.pop("per_method", None)  # the method's values have taken it up
    merged.pop("accumulation", None)  # changes nothing but memory
    of_method = {f"method.{key}": value for key, value in merged.pop("method").items()}
    untouched = {"init_from": None, "max_train_rows": None, "max_eval_rows": None, "backbone.dropout": None}
    return {**merged, **of_method, **untouched}


@functools.cache
def _of_task(group: str, task: str) -> dict[str, Any]:
    """A task's own settings by config key, without those that say which copy of its data is read."""
    kind = "benchmark" if task in options("benchmark") else "task"
    values: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / kind / f"{task}.yaml"))
    left_out = ("_target_", "version", "repo", "revision")
    return {f"{group}.{key}": value for key, value in values.items() if key not in left_out}
