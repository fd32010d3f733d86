"""Intervals and verdicts against closed forms, scipy and simulation."""

import numpy as np
import pytest
import scipy.stats
from synthetic import record

from melora_bench.results.estimates import certainty, scores
from melora_bench.results.stats import average_interval, false_alarms, improvement, margin


def test_two_seeds_of_one_task():
    """Mean 85, sd sqrt 50, t(1, .975) = 12.706: half the interval is 12.706 * sqrt(50 / 2)."""
    assert average_interval(np.array([[80.0, 90.0]])) == pytest.approx((85 - 63.531, 85 + 63.531), abs=1e-3)


@pytest.mark.parametrize("shape", [(1, 2), (4, 3), (8, 9)])
def test_the_interval_is_scipys_over_the_seeds_averages(shape):
    values = np.random.default_rng(0).normal(80, 3, shape)
    means = values.mean(0)
    expected = scipy.stats.t.interval(0.95, shape[1] - 1, means.mean(), scipy.stats.sem(means))
    assert average_interval(values) == pytest.approx(expected, abs=1e-9)


def test_tasks_far_apart_do_not_widen_the_interval():
    assert average_interval(np.array([[50.0, 50.0, 50.0], [90.0, 90.0, 90.0]])) == (70.0, 70.0)


@pytest.mark.parametrize("together", [0.0, 0.8])
def test_the_interval_holds_the_mean_in_95_of_100_cases(together):
    """At 4 tasks of other spreads and 3 seeds, whether or not the runs of one seed move together."""
    source, spreads = np.random.default_rng(0), np.array([[9.0], [1.0], [0.1], [2.0]])
    held = []
    for _ in range(4000):
        values = source.standard_normal((4, 3)) + together * source.standard_normal(3)
        low, high = average_interval(spreads * values)
        held.append(low <= 0 <= high)
    assert np.mean(held) == pytest.approx(0.95, abs=0.01)


def test_two_samples_of_one_law_differ_in_5_of_100_cases():
    """The margin of a difference is exact for a normal law at any numbers of seeds; the best of three moves less."""
    assert [false_alarms(3), false_alarms(5)] == pytest.approx([0.05, 0.05], abs=0.002)
    assert 0.01 < false_alarms(5, 3) < false_alarms(3, 3) < 0.04
    ours, theirs = (np.random.default_rng(seed).standard_normal((20_000, count)) for seed, count in ((1, 3), (2, 5)))
    gaps = np.abs(ours.mean(1) - theirs.mean(1))
    assert np.mean(gaps > margin(ours.std(1, ddof=1), 3, 5)) == pytest.approx(0.05, abs=0.005)
    assert np.mean(gaps > 2 * ours.std(1, ddof=1) / 3**0.5) > 0.2  # the paper's mean taken as exact, and z for t


@pytest.mark.parametrize(
    ("ours", "theirs", "share"),
    [
        ([[2, 2, 2]], [[1, 1, 1]], 1.0),
        ([[1, 1, 1]], [[1, 1, 1]], 0.5),
        ([[1, 1, 1]], [[2, 2, 2]], 0.0),
        ([[2, 0]], [[1, 1]], 0.5),
        ([[2, 2], [0, 0]], [[1, 1], [1, 1]], 0.5),
    ],
)
def test_improvement_in_closed_form(ours, theirs, share):
    assert improvement(np.array(ours), np.array(theirs)) == share


def test_improvement_is_paired_by_seed():
    """Each seed is above its own partner, though the two ranges overlap."""
    theirs = np.array([[10.0, 50.0, 90.0]])
    assert improvement(theirs + 1, theirs) == 1.0
    assert improvement(theirs[:, ::-1] + 1, theirs) == pytest.approx(2 / 3)


def test_other_tasks_or_seeds_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 3\) and \(1, 2\) are not the same"):
        improvement(np.zeros((1, 3)), np.zeros((1, 2)))


def found(*values: float) -> dict:
    return scores({"": {seed: record(seed=seed, curve=(value,)) for seed, value in enumerate(values)}}, "single")[0]


def test_an_average_is_compared_at_common_seeds():
    """Three seeds of ours, two of LoRA's: the interval uses three, the comparison two.

    Mean 80, sd 10, t(2, .975) = 4.303.
    """
    ours, lora = [found(0.8, 0.9, 0.7)], [found(0.7, 0.95)]
    both = certainty(ours, lora)["best"]
    assert both.interval == "55.16 to 104.84"
    assert both.beats_lora == "0.50"
    assert certainty(lora, None)["best"].beats_lora == "" and certainty(ours, None)["best"].beats_lora == ""
    one = certainty([found(0.8)], [found(0.7)])["best"]
    assert (one.interval, one.beats_lora) == ("", "")
