"""Differences to LoRA at the same seeds, with their intervals: one line per row of the table."""

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from melora_bench.results import stats
from melora_bench.results.figures.style import COLOURS, set_title
from melora_bench.results.sections import Section


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The mean difference of a row to its row of LoRA, in points, and its 95 % interval."""

    label: str
    mean: float
    low: float
    high: float
    seeds: int
    tasks: list[str]

    @property
    def is_constant(self) -> bool:
        """Whether all seeds agree, so that there is no interval."""
        return bool(np.isclose(self.low, self.high))


def figure(section: Section) -> Figure | None:
    """The differences of all rows; None where there is none."""
    row_differences = differences(section)
    return forest(row_differences, f"{section.title}, against {section.table.rival}") if row_differences else None


def differences(section: Section) -> list[Difference]:
    """The difference of each row to its LoRA, over the tasks and seeds that both have; a row with fewer than two such
    seeds has none.

    The estimate is `split`, in which no choice is made on the rows that are scored.
    """
    table, row_differences = section.table, []
    values: dict[str, dict[str, dict[int, float]]] = {}  # label -> task -> seed -> score
    rows = {}
    for line in section.lines:
        rows[line.label] = table.rows[line.number]
        if line.scores:
            values.setdefault(line.label, {})[line.task] = line.scores["split"].values
    for label, by_task in values.items():
        lora = table.reference(rows[label])
        of_lora = values.get(lora or "", {})
        tasks = [task for task in table.tasks if task in by_task and task in of_lora]
        common = [set(scores[task]) for task in tasks for scores in (by_task, of_lora)]
        seeds = sorted(set.intersection(*common)) if common else []
        if label != lora and len(seeds) > 1:
            gaps = np.array([[by_task[task][seed] - of_lora[task][seed] for seed in seeds] for task in tasks])
            low, high = stats.average_interval(gaps)
            mean = float(gaps.mean())
            row_differences.append(
                Difference(label=label, mean=mean, low=low, high=high, seeds=len(seeds), tasks=tasks)
            )
    return row_differences


def forest(row_differences: list[Difference], title: str) -> Figure:
    """One line per difference: the mean and its interval; hollow without one where all seeds agree."""
    drawing = Figure(figsize=(6, 1.1 + 0.28 * len(row_differences)), layout="constrained")
    axes = drawing.subplots()
    for place, one in enumerate(row_differences):
        if one.is_constant:
            axes.plot(one.mean, place, "o", color=COLOURS[0], markersize=4, markerfacecolor="white")
        else:
            axes.plot([one.low, one.high], [place, place], color=COLOURS[0])
            axes.plot(one.mean, place, "o", color=COLOURS[0], markersize=4)
    axes.axvline(0, color="black", linewidth=0.8, zorder=1)
    axes.set_yticks(range(len(row_differences)), [f"{one.label} ({', '.join(one.tasks)})" for one in row_differences])
    axes.set_ylim(len(row_differences) - 0.5, -0.5)
    seeds = [one.seeds for one in row_differences]
    among = f"{min(seeds)}" if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)}"
    lines = [
        "difference in points at the same seeds, epoch and n chosen on the other half",
        f"95 %: t interval over {among} seeds",
    ]
    if any(one.is_constant for one in row_differences):
        lines.append("hollow: the same difference at every seed, so no interval")
    axes.set_xlabel("\n".join(lines), loc="right")
    set_title(drawing, title)
    return drawing
