"""How sure a mean over seeds is, when two means differ, how often one method beats another: over seeds, by Student's t.

An average over tasks is taken per seed first. Its interval then holds whatever the tasks' spreads are, and however much
the runs of one seed on several tasks have in common.
"""

import functools
import math

import numpy as np
from scipy.special import stdtrit

DRAWS = 100_000  # of the simulation


def margin(sd: float, seeds: int, other_seeds: float = np.inf) -> float:
    """Half the 95 % interval of a mean of `seeds` values of that sd, or of its difference to a mean of `other_seeds`
    values of the same law: t(seeds - 1, .975) * sd * sqrt(1 / seeds + 1 / other_seeds)."""
    return float(stdtrit(seeds - 1, 0.975)) * sd * math.sqrt(1 / seeds + 1 / other_seeds)


@functools.cache
def false_alarms(seeds: int, settings: int = 1) -> float:
    """The share of cases in which two samples of one normal law differ by more than `margin`, each the best mean of
    `settings` settings with `seeds` values. Simulated, with a fixed seed."""
    ours, theirs = np.random.default_rng(0).standard_normal((2, DRAWS, settings, seeds))
    best = ours[np.arange(DRAWS), ours.mean(2).argmax(1)]
    gaps = np.abs(best.mean(1) - theirs.mean(2).max(1))
    return float(np.mean(gaps > margin(1.0, seeds, seeds) * best.std(1, ddof=1)))


def average_interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the mean over tasks and seeds, values (tasks, seeds) of two seeds or more."""
    means = values.mean(axis=0)
    half = margin(float(means.std(ddof=1)), len(means))
    return float(means.mean() - half), float(means.mean() + half)


def improvement(ours: np.ndarray, theirs: np.ndarray) -> float:
    """How often ours is above theirs at the same task and seed, (tasks, seeds) each; ties count half.

    Raises ValueError when the two do not have the same tasks and seeds.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"{ours.shape} and {theirs.shape} are not the same tasks and seeds")
    return float(np.where(ours == theirs, 0.5, ours > theirs).mean())
