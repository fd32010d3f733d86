"""Score against trained adapter parameters: mean and sd of each row, and the best mean up to so many parameters."""

import textwrap
from collections import Counter
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator

from melora_bench.results.estimates import Score
from melora_bench.results.figures.style import MARKERS, finish, look, panels
from melora_bench.results.lines import TableLine
from melora_bench.results.sections import Section


def figure(section: Section) -> Figure | None:
    """One panel per task; a row without adapter parameters is a level. None where no task has a score.

    Rows of one count (to two digits) stand side by side. Steps follow the highest mean for at most so many parameters.
    """
    scored = [line for line in section.lines if line.scores and line.adapter_params is not None]
    if not scored:
        return None
    tasks = [task for task in section.table.tasks if any(line.task == task for line in scored)]
    drawing, by_task = panels(tasks, section.title, 5)
    counts = [line.adapter_params for line in scored if line.adapter_params] or [1]
    limits, looks, steps = (min(counts) / 2, 2 * max(counts)), _looks(scored), {}
    for task, axes in by_task.items():
        axes.set(xscale="log", xlim=limits)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.minorticks_off()
        lines = [line for line in scored if line.task == task]
        _points(axes, lines, looks)
        steps[task] = _steps(axes, lines)
    finish(drawing, by_task, "adapter parameters (equal counts stand side by side)", "score at the best epoch, %")
    for task, axes in by_task.items():
        axes.set_xlabel(axes.get_xlabel() + "\n" + textwrap.fill(f"steps: {'; '.join(steps[task])}", 80))
    return drawing


def _points(axes: Axes, lines: list[TableLine], looks: dict[str, dict[str, Any]]) -> None:
    """One point per line of a task, with its sd as a bar."""
    left, right = axes.get_xlim()
    columns = [f"{line.adapter_params:.1e}" for line in lines]
    for number, line in enumerate(lines):
        score, column = line.scores["best"], columns[number]
        if line.adapter_params:
            beside = columns[:number].count(column) - (columns.count(column) - 1) / 2
            x = line.adapter_params * (right / left) ** (0.014 * beside)  # 1.4 % of the axis apart
            style = looks[line.label]
            axes.errorbar(x, score.mean, score.sd or 0, elinewidth=0.8, ls="none", label=line.label, **style)
        else:
            _level(axes, line.label, score, looks[line.label]["color"])


def _looks(lines: list[TableLine]) -> dict[str, dict[str, Any]]:
    """By label: one colour per row of the table, a marker of its own for each of its lines, hollow for a mean over
    n."""
    labels: Counter[int] = Counter()  # so far, by row of the table
    looks: dict[str, dict[str, Any]] = {}
    for line in lines:
        if line.label not in looks:
            marker = MARKERS[(line.number + 3 * labels[line.number]) % len(MARKERS)]
            face = "white" if line.kind == "mean" else look(line.number)["color"]
            looks[line.label] = look(line.number) | {"marker": marker, "markerfacecolor": face}
            labels[line.number] += 1
    return looks


def _level(axes: Axes, label: str, score: Score, colour: str) -> None:
    """A score that needs no adapter parameters: a line across, named at its right end, and its sd."""
    sd = score.sd or 0
    axes.axhline(score.mean, color=colour, linewidth=0.8, linestyle="--")
    axes.axhspan(score.mean - sd, score.mean + sd, color=colour, alpha=0.1, linewidth=0)
    axes.annotate(
        f"{label} (no adapter)",
        (1, score.mean),
        (0, 2),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        ha="right",
        fontsize=7,
    )


def _steps(axes: Axes, lines: list[TableLine]) -> list[str]:
    """Draw the highest mean for at most so many parameters; returns the labels of the lines that raise it."""
    left, right = axes.get_xlim()
    x: list[float] = []
    y: list[float] = []
    labels = []
    for line in sorted(lines, key=lambda line: (line.adapter_params or 0, -line.scores["best"].mean)):
        mean = line.scores["best"].mean
        if not y or mean > y[-1]:
            x.append(line.adapter_params or left)
            y.append(mean)
            labels.append(line.label)
    style: dict[str, Any] = {"color": "grey", "linewidth": 0.8, "zorder": 1}
    axes.step([*x, right], [*y, y[-1]], where="post", label="steps: best mean up to so many parameters", **style)
    return labels
