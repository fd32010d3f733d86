"""How sure an average over tasks and seeds is, and how often one method beats another: stratified bootstrap, seeded.

Seeds are resampled within each task, as tasks are chosen and seeds are drawn (Agarwal et al. 2021, arXiv 2108.13264).
"""

import numpy as np

RESAMPLES = 10_000


def average_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of the mean over tasks and seeds, values (tasks, seeds)."""
    return _interval(_resampled(values).mean(axis=(1, 2)), level)


def improvement(ours: np.ndarray, theirs: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """How often ours is above theirs at the same task and seed, (tasks, seeds) each, and its interval; ties count half.

    Raises ValueError when the two do not have the same tasks and seeds.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"{ours.shape} and {theirs.shape} are not the same tasks and seeds")
    wins = np.where(ours == theirs, 0.5, ours > theirs)
    return (float(wins.mean()), *_interval(_resampled(wins).mean(axis=(1, 2)), level))


def _resampled(values: np.ndarray) -> np.ndarray:
    """(resamples, tasks, seeds): each task's seeds drawn with replacement."""
    tasks, seeds = values.shape
    drawn = np.random.default_rng(0).integers(seeds, size=(RESAMPLES, tasks, seeds))
    return np.take_along_axis(np.broadcast_to(values, drawn.shape), drawn, axis=2)


def _interval(samples: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
