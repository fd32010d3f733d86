"""The audit's verdicts: confirmed where the records agree, refuted where they do not, in numbers that can be
checked."""

import dataclasses

import numpy as np
from synthetic import record

from melora_bench.grids.tables import load_table
from melora_bench.results.audit import _noise, _selection, verdicts
from melora_bench.results.cells import CellKey

TABLE = load_table("audit")
NUMBER = {row.label: number for number, row in enumerate(TABLE.rows)}


def cells(**found) -> dict:
    """{(backbone, row, task): runs} by the row's label with spaces for underscores."""
    labels = {
        "lora": "LoRA r=8",
        "mplora": "MPLoRA lambda=0",
        "one": "Share-LoRA one mask",
        "own": "Share-LoRA own masks",
    }
    return {CellKey("minilm", NUMBER[labels[name]], "movie"): runs for name, runs in found.items()}


def lora(*scores: float) -> dict:
    return {seed: record(seed=seed, curve=(0.5, score)) for seed, score in enumerate(scores)}


def test_equal_runs_confirm_and_one_loss_refutes():
    ours = {"": lora(0.8, 0.9)}
    [line] = verdicts(TABLE, cells(lora=ours, mplora={"2": lora(0.8, 0.9), "4": lora(0.8, 0.9)}))
    assert "LoRA: confirmed." in line and "n = 2, 4" in line and "score is 0." in line
    other = lora(0.8, 0.9)
    entry = other[1].epochs[0]
    other[1] = dataclasses.replace(other[1], epochs=[{**entry, "train_loss": 0.25}, *other[1].epochs[1:]])
    [line] = verdicts(TABLE, cells(lora=ours, mplora={"2": lora(0.8, 0.9), "4": other}))
    assert "LoRA: REFUTED." in line and "score is 0.25." in line


def test_runs_of_other_code_are_not_compared():
    ours, theirs = lora(0.8, 0.9), lora(0.8, 0.1)
    theirs[1] = dataclasses.replace(theirs[1], git={"commit": "f" * 40, "dirty": False})
    [line] = verdicts(TABLE, cells(lora={"": ours}, mplora={"2": theirs}))
    assert "not comparable" in line and "REFUTED" not in line


def paths(count: int) -> dict:
    one = record()
    one.epochs[-1]["report"]["distinct_paths"] = count
    return {"": {0: one}}


def test_the_tie():
    assert "path: confirmed." in verdicts(TABLE, cells(one=paths(1), own=paths(2)))[0]
    assert "path: REFUTED." in verdicts(TABLE, cells(one=paths(2), own=paths(2)))[0]
    assert "path: REFUTED." in verdicts(TABLE, cells(one=paths(1), own=paths(1)))[0]


def test_selection_is_nothing_without_noise_and_the_brute_force_mean_with_it():
    assert "adds 0.00 points" in _selection(np.full(9, 80.0)) and "all 280 groupings" in _selection(np.full(9, 80.0))
    scores = np.array([70.0] * 8 + [79.0])  # one seed stands out: its group is 3 above the rest, 2 above the mean
    assert "adds 2.00 points" in _selection(scores)


def test_noise_is_the_standard_error_of_a_difference_of_three_seeds():
    text = _noise(np.array([78.0, 80.0, 82.0]))
    assert "means by 1.63 points" in text and "sd of one seed 2.00" in text
    for gap in (
        "MPLoRA's +0.68 (paper 2, 6 tasks; seeds alone 0.67)",
        "MELoRA's -0.35 (paper 2, 6 tasks; seeds alone 0.67)",
        "MELoRA's +0.73 (paper 1, 8 tasks; seeds alone 0.58)",
        "is LoRA, -0.29 (paper 2, 3 tasks; seeds alone 0.94)",
    ):
        assert gap in text


def test_seeds_and_backbones_are_not_mixed():
    """Only common seeds are compared; without one nothing is said; another backbone's runs are another verdict."""
    ours = {"": lora(0.8, 0.9, 0.7)}
    [line] = verdicts(TABLE, cells(lora=ours, mplora={"2": {1: record(seed=1, curve=(0.5, 0.9))}}))
    assert "and 1 seeds" in line
    assert verdicts(TABLE, cells(lora=ours, mplora={"2": {7: record(seed=7)}})) == verdicts(TABLE, {})
    both = cells(lora=ours) | {CellKey("roberta_base", NUMBER["MPLoRA lambda=0"], "movie"): {"2": lora(0.1)}}
    assert verdicts(TABLE, both) == verdicts(TABLE, {})


def test_rounding_is_told_from_a_difference():
    other = {seed: record(seed=seed, curve=(0.5, 0.8 + 1e-6)) for seed in range(2)}
    assert "confirmed to rounding" in verdicts(TABLE, cells(lora={"": lora(0.8, 0.8)}, mplora={"2": other}))[0]


def test_without_records_it_says_what_to_run():
    assert verdicts(TABLE, {}) == ["Nothing to judge yet: run `make sweep TABLE=audit`."]
