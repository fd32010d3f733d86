"""Score against a setting, one line per value of another setting; published points hollow."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy import array

from melora_bench.grids.tables import Row
from melora_bench.results.figures.style import band, finish, panels
from melora_bench.results.lines import TableLine
from melora_bench.results.sections import Section


def figure(section: Section, x_key: str, line_key: str | None) -> Figure | None:
    """The scores of the rows that set `x_key`, one line per value of `line_key` that has two points, a panel per task
    and for the average. None where no task has a score.

    The axis is logarithmic to base 2, or about 0 linear where the setting can be 0; its ticks are the grid's own
    values.
    """
    table = section.table
    if not any(line.scores for line in section.lines if line.task in table.tasks):
        return None
    drawing, by_name = panels([*section.tasks, *filter(None, [table.average])], section.title, 5)
    ticks = sorted({_value(row, x_key) for row in table.rows if x_key in row.settings})
    for axes in by_name.values():
        _scale(axes, ticks)
    drawn = [line for line in section.lines if x_key in table.rows[line.number].settings and line.task in by_name]
    scores = _scores(section, drawn, x_key, line_key)
    order = sorted({value for _, value in scores})
    for (task, value), points in scores.items():
        x, mean, sd = array(sorted(points)).T
        band(by_name[task], x, mean, sd, order.index(value), f"{line_key}={value}" if line_key else "ours")
    for line in drawn:
        if line.published:
            place = _value(table.rows[line.number], x_key), line.published.value
            by_name[line.task].plot(*place, "o", color="grey", fillstyle="none", label="published")
    finish(drawing, by_name, x_key, "score at the best epoch, %")
    return drawing


def _scores(
    section: Section, lines: list[TableLine], x_key: str, line_key: str | None
) -> dict[tuple[str, str], list[tuple[float, float, float]]]:
    """The (x, mean, sd) of each line to draw that has two of them, by task and value of `line_key`."""
    scores: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for line in lines:
        row = section.table.rows[line.number]
        if line.scores and line.kind in ("single", "mean"):
            score = line.scores["best"]
            value = "" if line_key is None else str(row.settings.get(line_key))
            scores.setdefault((line.task, value), []).append((_value(row, x_key), score.mean, score.sd or 0.0))
    return {place: points for place, points in scores.items() if len(points) > 1}


def _value(row: Row, key: str) -> float:
    return float(row.values(key)[0])


def _scale(axes: Axes, ticks: list[float]) -> None:
    if ticks[0] > 0:
        axes.set_xscale("log", base=2)
    else:
        axes.set_xscale("symlog", linthresh=min(tick for tick in ticks if tick > 0), linscale=0.5)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], rotation=0 if ticks[0] > 0 else 90)
    axes.minorticks_off()
