"""How sure an average over tasks and seeds is, and how often one method beats another: stratified bootstrap, seeded.

Seeds are resampled within each task, as tasks are chosen and seeds are drawn (Agarwal et al. 2021, arXiv 2108.13264).
"""

import numpy as np

RESAMPLES = 10_000


def average_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of the mean over tasks and seeds, values (tasks, seeds)."""
    return _interval(_means(values), level)


def improvement(ours: np.ndarray, theirs: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """How often ours is above theirs at the same task and seed, (tasks, seeds) each, and its interval; ties count half.

    Raises ValueError when the two do not have the same tasks and seeds.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"{ours.shape} and {theirs.shape} are not the same tasks and seeds")
    wins = np.where(ours == theirs, 0.5, ours > theirs)
    return (float(wins.mean()), *_interval(_means(wins), level))


def _means(values: np.ndarray) -> np.ndarray:
    """(resamples,): means over tasks and seeds, each task's seeds drawn with replacement."""
    source, seeds = np.random.default_rng(0), values.shape[1]
    draws = (row[source.integers(seeds, size=(RESAMPLES, seeds))].mean(axis=1) for row in values)
    return np.asarray(np.mean(list(draws), axis=0))


def _interval(samples: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
