"""Verdicts on what the papers' comparisons rest on, from the records of the grid `audit`."""

import itertools

import numpy as np

from melora_bench.grids.tables import Table
from melora_bench.records.records import RunRecord
from melora_bench.results import published
from melora_bench.results.cells import Cells
from melora_bench.results.estimates import Runs, all_records

GROUP = 3  # the papers' seeds per cell, and the values of n from which they report the best
AT_ZERO = "MPLoRA's at lambda = 0, where it is LoRA,"
GAPS = [  # (whose lead over LoRA, where it is printed, (paper, table), the cell, over how many tasks)
    ("MPLoRA's", "paper 2", ("mplora", "2"), ("mplora", "best n of 2;4;8", "average of 6"), 6),
    ("MELoRA's", "paper 2", ("mplora", "2"), ("melora", "best n of 2;4;8", "average of 6"), 6),
    ("MELoRA's", "paper 1", ("melora", "2"), ("melora", "r=8, best n of 2;4;8", "average of 8"), 8),
    (AT_ZERO, "paper 2", ("mplora", "3"), ("mplora", "lambda=0", "average of mrpc;cola;stsb"), 3),
]


def verdicts(table: Table, cells: Cells) -> list[str]:
    """One sentence each per backbone, with the numbers; a check whose records are missing is left out."""
    lines = []
    for backbone in sorted({key.backbone for key in cells}):
        by_row = {key.row: runs for key, runs in cells.items() if key.backbone == backbone}
        runs_of = {row.label: by_row.get(number, {}) for number, row in enumerate(table.rows)}
        lora = runs_of["LoRA r=8"].get("", {})
        lines += _identity(lora, runs_of["MPLoRA lambda=0"])
        if runs_of["Share-LoRA one mask"] and runs_of["Share-LoRA own masks"]:
            lines.append(_tie(runs_of["Share-LoRA one mask"], runs_of["Share-LoRA own masks"]))
        if len(lora) == GROUP**2:
            scores = np.array([record.epochs[-1]["metrics"][record.metric] for record in lora.values()]) * 100
            lines += [_selection(scores), _noise(scores)]
    return lines or ["Nothing to judge yet: run `make sweep TABLE=audit`."]


def _identity(lora: dict[int, RunRecord], equal: Runs) -> list[str]:
    """Every loss and metric of every epoch at every n, beside those of LoRA's same seed by the same code and device."""
    gaps, seeds = [], set()
    for by_seed in equal.values():
        for seed in by_seed.keys() & lora.keys():
            if (by_seed[seed].git, by_seed[seed].env) != (lora[seed].git, lora[seed].env):
                return [
                    "**MPLoRA at lambda = 0 is LoRA: not comparable.** Their records are of different commits, devices "
                    "or versions, whose dropout masks may differ: run one of them again."
                ]
            seeds.add(seed)
            for a, b in zip(by_seed[seed].epochs, lora[seed].epochs, strict=True):
                gaps.append(abs(a["train_loss"] - b["train_loss"]))
                gaps += [abs(value - b["metrics"][key]) for key, value in a["metrics"].items()]
    if not gaps:
        return []
    same = "confirmed" if max(gaps) == 0 else "confirmed to rounding" if max(gaps) < 1e-4 else "REFUTED"
    values = ", ".join(sorted(equal, key=int))
    return [
        f"**MPLoRA at lambda = 0 is LoRA: {same}.** Over n = {values} and {len(seeds)} seeds, the largest difference "
        f"of any loss or score is {max(gaps):g}. Whatever a paper finds between the two is noise."
    ]


def _tie(shared: Runs, independent: Runs) -> str:
    """How many paths are distinct where all share a dropout mask, and where each draws a mask of its own."""
    one, several = (
        {record.epochs[-1]["report"]["distinct_paths"] for record in all_records(runs)}
        for runs in (shared, independent)
    )
    same = "confirmed" if one == {1} and 1 not in several else "REFUTED"
    return (
        f"**Share-LoRA read literally has one path: {same}.** With one dropout mask for all paths, {_span(one)} of "
        f"them is distinct after training; with a mask for each, {_span(several)}."
    )


def _selection(scores: np.ndarray) -> str:
    """Best of three groups of three seeds of ONE method, minus their mean, over all ways to form the groups."""
    gains = []
    for first in itertools.combinations(range(1, GROUP**2), GROUP - 1):  # seed 0 is in the first group
        rest = [i for i in range(1, GROUP**2) if i not in first]
        for second in itertools.combinations(rest[1:], GROUP - 1):
            third = [i for i in rest[1:] if i not in second]
            means = [scores[list(group)].mean() for group in ((0, *first), (rest[0], *second), third)]
            gains.append(max(means) - np.mean(means))
    return (
        f"**Where every n has seeds of its own, the best n of three adds {np.mean(gains):.2f} points for nothing**: "
        "the mean gain of the best of three groups of three seeds of LoRA over their mean, last epoch, in all "
        f"{len(gains)} groupings."
    )


def _noise(scores: np.ndarray) -> str:
    one = scores.std(ddof=1) * np.sqrt(2 / GROUP)
    gaps = [
        f"{whose} {_gap(table, cell):+.2f} ({where}, {tasks} tasks; seeds alone {one / np.sqrt(tasks):.2f})"
        for whose, where, table, cell, tasks in GAPS
    ]
    return (
        f"**Seeds alone move a difference of two three-seed means by {one:.2f} points here** (standard error; sd of "
        f"one seed {scores.std(ddof=1):.2f}, {len(scores)} seeds, last epoch). The leads over LoRA that the papers "
        "print, averaged over tasks, beside what seeds alone would do to an average of tasks as noisy as this one: "
        f"{'; '.join(gaps)}."
    )


def _gap(table: tuple[str, str], cell: tuple[str, str, str]) -> float:
    """A cell minus LoRA's: its average in that table,
    or else the mean of its cells of those tasks in the paper's Table 2."""
    cells, (paper, _) = published.index(*table), table
    others = [entry.value for (method, _, task), entry in cells.items() if method == "lora" and task == cell[2]]
    if not others:
        tasks = cell[2].removeprefix("average of ").split(";")
        others = [published.index(paper, "2")["lora", "", task].value for task in tasks]
    return cells[cell].value - float(np.mean(others))


def _span(values: set[int]) -> str:
    return str(min(values)) if len(values) == 1 else f"{min(values)} to {max(values)}"
