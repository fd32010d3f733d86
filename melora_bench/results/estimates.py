"""From the epochs of a cell's runs to one number per seed, by three rules that answer different questions."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from melora_bench.records.records import RunRecord, selectable
from melora_bench.results import stats

Runs = dict[str, dict[int, RunRecord]]  # value of the key that a row selects over ("" if none) -> seed -> record


def all_records(runs: Runs) -> Iterator[RunRecord]:
    """Every record of a cell."""
    return (record for by_seed in runs.values() for record in by_seed.values())


ESTIMATES = {
    "best": "best epoch on the set that is reported, as the papers select",
    "last": "last epoch (best n by its mean there)",
    "split": "epoch and n chosen on one half of the set and scored on the other, both ways",
}


@dataclass(frozen=True)
class Score:
    """One estimate of one cell, in percent: a value per seed."""

    values: dict[int, float]

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.values.values())))

    @property
    def sd(self) -> float | None:
        return float(np.std(list(self.values.values()), ddof=1)) if len(self.values) > 1 else None

    def text(self, usual_seeds: int) -> str:
        spread = "" if self.sd is None else f" ± {self.sd:.2f}"
        return f"{self.mean:.2f}{spread}" + ("" if len(self.values) == usual_seeds else f" ({len(self.values)})")


def scores(runs: Runs, which: str) -> tuple[dict[str, Score], str]:
    """{estimate: score} of one cell, and the value that the papers' selection picks (the first of equals).

    which: single or best (select one of the values), or mean (average over them). Only seeds that all values have count;
    without such a seed there is no score.
    """
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in runs.values())))
    if not seeds:
        return {}, ""
    curves = {value: [_curves(by_seed[seed]) for seed in seeds] for value, by_seed in runs.items()}
    each = {value: np.array([_single(curve) for curve in per_seed]) for value, per_seed in curves.items()}  # (seeds, 3)
    if which == "mean":
        chosen, table = "", np.mean(list(each.values()), axis=0)
    else:
        best, last = (max(each, key=lambda value, i=i: each[value][:, i].mean()) for i in (0, 1))
        chosen, table = best, np.stack([each[best][:, 0], each[last][:, 1], _split(curves)], axis=1)
    return {name: Score(dict(zip(seeds, 100 * table[:, i], strict=True))) for i, name in enumerate(ESTIMATES)}, chosen


@dataclass(frozen=True)
class Sure:
    """How sure an average over tasks and seeds is, as text: blank where seeds are too few to say."""

    interval: str  # 95 %, stratified bootstrap
    beats_lora: str  # share of tasks and seeds at which it is above LoRA, and its 95 % interval


def sure(tasks: list[dict[str, Score]], lora: list[dict[str, Score]]) -> dict[str, Sure]:
    """{estimate: Sure} of an average over `tasks`, at the seeds that every task, and for the comparison LoRA, has."""
    found = {}
    for name in ESTIMATES:
        values = _matrix(tasks, name, _seeds(tasks))
        paired = _seeds([*tasks, *lora]) if lora and lora is not tasks else []
        low, high = stats.average_interval(values)
        share = (
            stats.improvement(_matrix(tasks, name, paired), _matrix(lora, name, paired)) if len(paired) > 1 else None
        )
        found[name] = Sure(
            f"{low:.2f} to {high:.2f}" if values.shape[1] > 1 else "",
            "{:.2f} ({:.2f} to {:.2f})".format(*share) if share else "",
        )
    return found


def average(tasks: list[dict[str, Score]]) -> dict[str, Score]:
    """The mean over tasks, per seed that every task has; empty without such a seed."""
    seeds = _seeds(tasks)
    means = {name: _matrix(tasks, name, seeds).mean(axis=0) for name in ESTIMATES}
    return {name: Score(dict(zip(seeds, map(float, means[name]), strict=True))) for name in ESTIMATES} if seeds else {}


def _seeds(tasks: list[dict[str, Score]]) -> list[int]:
    """The seeds that every task has."""
    return sorted(set.intersection(*(set(found["best"].values) for found in tasks)))


def _matrix(tasks: list[dict[str, Score]], estimate: str, seeds: list[int]) -> np.ndarray:
    """(tasks, seeds)."""
    return np.array([[found[estimate].values[seed] for seed in seeds] for found in tasks])


def _curves(record: RunRecord) -> np.ndarray:
    """(3, epochs): the selection metric on the whole set and on its two halves."""
    metric = record.metric
    return np.array(
        [[entry["metrics"][metric], *(half[metric] for half in entry["halves"])] for entry in selectable(record.epochs)]
    ).T


def _single(curve: np.ndarray) -> tuple[float, float, float]:
    whole, a, b = curve
    return whole.max(), whole[-1], (b[a.argmax()] + a[b.argmax()]) / 2


def _split(curves: dict[str, list[np.ndarray]]) -> np.ndarray:
    """(seeds,): the value with the best mean over seeds on one half, each seed's best epoch there, scored on the other."""
    ways = []
    for chooser, scorer in ((1, 2), (2, 1)):
        best = max(curves, key=lambda value, i=chooser: np.mean([curve[i].max() for curve in curves[value]]))
        ways.append([curve[scorer][curve[chooser].argmax()] for curve in curves[best]])
    return np.mean(ways, axis=0)
