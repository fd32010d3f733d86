"""Verdicts on what the papers' comparisons rest on, from the records of the grid `audit`."""

import itertools

import numpy as np

from melora_bench import published
from melora_bench.estimates import Runs, all_records

GROUP = 3  # the papers' seeds per cell, and the values of n from which they report the best


def verdicts(table: dict, cells: dict) -> list[str]:
    """One sentence each, with the numbers; a check whose records are missing says so."""
    numbers = {row["label"]: number for number, row in enumerate(table["rows"])}
    found = {label: next((runs for (_, each, _), runs in cells.items() if each == number), {})
             for label, number in numbers.items()}  # fmt: skip
    lora, equal = found["LoRA r=8"], found["MPLoRA lambda=0"]
    literal, own = found["Share-LoRA one mask"], found["Share-LoRA own masks"]
    lines = []
    if lora and equal:
        lines.append(_identity(lora[""], equal))
    if literal and own:
        lines.append(_tie(literal, own))
    if lora and len(lora[""]) >= GROUP**2:
        scores = np.array([record.epochs[-1]["metrics"][record.metric] for record in lora[""].values()]) * 100
        lines += [_selection(scores), _noise(scores)]
    return lines or ["Nothing to judge yet: run `make sweep TABLE=audit`."]


def _identity(lora: dict, equal: Runs) -> str:
    """Every loss and metric of every epoch and seed, at every n, beside LoRA's."""
    gaps = []
    for by_seed in equal.values():
        for seed in by_seed.keys() & lora.keys():
            for a, b in zip(by_seed[seed].epochs, lora[seed].epochs, strict=True):
                gaps += [
                    abs(a["train_loss"] - b["train_loss"]),
                    *(abs(a["metrics"][k] - b["metrics"][k]) for k in a["metrics"]),
                ]
    same = "confirmed" if max(gaps) == 0 else "REFUTED"
    return (f"**MPLoRA at lambda = 0 is LoRA: {same}.** Over n = {', '.join(equal)} and {len(lora)} seeds, the largest "
            f"difference of any loss or score is {max(gaps):g}. Whatever a paper finds between the two is noise.")  # fmt: skip


def _tie(literal: Runs, own: Runs) -> str:
    one, several = (
        {record.epochs[-1]["report"]["distinct_paths"] for record in all_records(runs)} for runs in (literal, own)
    )
    same = "confirmed" if one == {1} and 1 not in several else "REFUTED"
    return (f"**Share-LoRA read literally has one path: {same}.** With one dropout mask for all paths, {_span(one)} of them is "
            f"distinct after training; with a mask for each, {_span(several)}.")  # fmt: skip


def _selection(scores: np.ndarray) -> str:
    """Best of three groups of three seeds of ONE method, minus their mean, over all ways to form the groups."""
    gains = []
    for first in itertools.combinations(range(1, GROUP**2), GROUP - 1):  # seed 0 is in the first group
        rest = [i for i in range(1, GROUP**2) if i not in first]
        for second in itertools.combinations(rest[1:], GROUP - 1):
            third = [i for i in rest[1:] if i not in second]
            means = [scores[list(group)].mean() for group in ((0, *first), (rest[0], *second), third)]
            gains.append(max(means) - np.mean(means))
    return (f"**Reporting the best n of three adds {np.mean(gains):.2f} points where n does nothing**: the mean gain of the "
            f"best of three groups of three seeds of LoRA over their mean, in all {len(gains)} groupings.")  # fmt: skip


def _noise(scores: np.ndarray) -> str:
    cells = published.index("mplora", "2")
    task = "average of 6"
    gap = cells["mplora", "best n of 2;4;8", task].value - cells["lora", "", task].value
    error = scores.std(ddof=1) * np.sqrt(2 / GROUP)
    return (f"**Seeds alone move a three-seed difference by {error:.2f} points here** (standard error; sd of one seed "
            f"{scores.std(ddof=1):.2f}, {len(scores)} seeds, last epoch). The gap that paper 2 reports between MPLoRA and "
            f"LoRA, averaged over six tasks, is {gap:.2f}.")  # fmt: skip


def _span(values: set[int]) -> str:
    return str(min(values)) if len(values) == 1 else f"{min(values)} to {max(values)}"
