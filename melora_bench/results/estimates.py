"""From the epochs of a cell's runs to one number per seed, by three rules that answer different questions."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from melora_bench.records.records import RunRecord, selectable
from melora_bench.results import stats

Runs = dict[str, dict[int, RunRecord]]  # value of the key that a row selects over ("" if none) -> seed -> record
# What a line does with the values of that key: there is none; the best is selected; their mean; one value, without the
# others.
Kind = Literal["single", "best", "mean", "alone"]
ESTIMATES = {
    "best": "best epoch on the set that is reported, as the papers select",
    "last": "last epoch (best n by its mean there)",
    "split": "epoch and n chosen on one half of the set and scored on the other, both ways",
}


def all_records(runs: Runs) -> Iterator[RunRecord]:
    """Every record of a cell."""
    return (record for by_seed in runs.values() for record in by_seed.values())


def any_record(runs: Runs) -> RunRecord | None:
    """One of a cell's records, for what all of them share."""
    return next(all_records(runs), None)


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


Scores = dict[str, Score]  # by estimate; empty where a cell is not complete


def scores(runs: Runs, kind: Kind) -> tuple[Scores, str]:
    """The scores of one cell, and the value that the papers' selection picks (the first of equals).

    kind: "mean" averages over the values, any other selects one of them. Seeds that some value lacks are left out;
    there is no score where no seed is left.
    """
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in runs.values())))
    if not seeds:
        return {}, ""
    curves = {value: [_curves(by_seed[seed]) for seed in seeds] for value, by_seed in runs.items()}
    # By value: (seeds, 3), the estimates in their order.
    alone = {value: np.array([_single(curve) for curve in per_seed]) for value, per_seed in curves.items()}
    if kind == "mean":
        chosen, table = "", np.mean(list(alone.values()), axis=0)
    else:
        best = max(alone, key=lambda value: float(alone[value][:, 0].mean()))
        last = max(alone, key=lambda value: float(alone[value][:, 1].mean()))
        chosen, table = best, np.stack([alone[best][:, 0], alone[last][:, 1], _split(curves)], axis=1)
    return {name: Score(dict(zip(seeds, 100 * table[:, i], strict=True))) for i, name in enumerate(ESTIMATES)}, chosen


@dataclass(frozen=True)
class Certainty:
    """How certain an average over tasks and seeds is, as texts: blank where the seeds are too few to say."""

    interval: str  # 95 %, of Student's t
    beats_lora: str  # share of tasks and seeds at which the score is above LoRA's


def certainty(tasks: list[Scores], lora: list[Scores] | None) -> dict[str, Certainty]:
    """The certainty of an average over `tasks`, by estimate, and its comparison with LoRA's average where `lora` is
    given.

    The interval takes the seeds that every task has; the comparison those that every task of both has.
    """
    certain = {}
    for name in ESTIMATES:
        values = _matrix(tasks, name, _seeds(tasks))
        interval = "{:.2f} to {:.2f}".format(*stats.average_interval(values)) if values.shape[1] > 1 else ""
        certain[name] = Certainty(interval, _beats(tasks, lora, name) if lora else "")
    return certain


def _beats(tasks: list[Scores], lora: list[Scores], estimate: str) -> str:
    """The share of tasks and seeds at which `tasks` is above `lora`; blank below two seeds."""
    seeds = _seeds([*tasks, *lora])
    if len(seeds) < 2:
        return ""
    return f"{stats.improvement(_matrix(tasks, estimate, seeds), _matrix(lora, estimate, seeds)):.2f}"


def average(tasks: list[Scores]) -> Scores:
    """The mean over tasks, per seed that every task has; empty without such a seed."""
    seeds = _seeds(tasks)
    means = {name: _matrix(tasks, name, seeds).mean(axis=0) for name in ESTIMATES}
    return {name: Score(dict(zip(seeds, map(float, means[name]), strict=True))) for name in ESTIMATES} if seeds else {}


def _seeds(tasks: list[Scores]) -> list[int]:
    """The seeds that every task has."""
    return sorted(set.intersection(*(set(task["best"].values) for task in tasks)))


def _matrix(tasks: list[Scores], estimate: str, seeds: list[int]) -> np.ndarray:
    """(tasks, seeds)."""
    return np.array([[task[estimate].values[seed] for seed in seeds] for task in tasks])


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
    """(seeds,): one half chooses the value with the best mean over seeds and each seed's best epoch, the other half
    scores them; the mean of both ways round."""
    ways = []
    for chooser, scorer in ((1, 2), (2, 1)):
        chosen = max(curves.values(), key=functools.partial(_mean_top, row=chooser))
        ways.append([curve[scorer][curve[chooser].argmax()] for curve in chosen])
    return np.asarray(np.mean(ways, axis=0))


def _mean_top(curves: list[np.ndarray], row: int) -> float:
    """The mean over seeds of each seed's best epoch in that row of its curve."""
    return float(np.mean([curve[row].max() for curve in curves]))
