"""Figures from records: sweeps over a setting, training curves, score against parameters, differences to LoRA."""

import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator

from melora_bench.files import write_atomic
from melora_bench.grids.grid import reference, rival
from melora_bench.results import stats
from melora_bench.results.estimates import Score, all_records
from melora_bench.results.tables import Assembled, assemble

# Okabe and Ito's colours, which colour-blind readers can tell apart, and a marker of its own for each.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
MARKERS = "osD^vP*X"
STYLE = {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3,
         "legend.frameon": False, "text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "melora_bench"}  # fmt: skip


def draw(name: str, results_dir: str | None = None, experiment: str | None = None) -> list[Path]:
    """Write <results_dir>/figures/<table>_<backbone>_<kind>.svg and .png of every figure that the table's records allow,
    and remove the files of those that they no longer allow. The records of another experiment than the table's own make
    figures of that name.

    Raises ValueError for a bad record. A table without records has no figures.
    """
    it, paths = assemble(name, results_dir, experiment), []
    for backbone in sorted({backbone for backbone, _, _ in it.cells}):
        for kind, figure in _figures(it, backbone):
            stem = it.results / "figures" / f"{experiment or name}_{backbone}_{kind}"
            if figure:
                paths += _save(figure, stem)
            else:
                for end in ("svg", "png"):
                    stem.with_name(f"{stem.name}.{end}").unlink(missing_ok=True)
    return paths


def _figures(it: Assembled, backbone: str) -> Iterator[tuple[str, Figure | None]]:
    """(kind, figure) of one backbone, None where the records do not allow it."""
    mine = {(number, task): runs for (name, number, task), runs in it.cells.items() if name == backbone}
    table, rows = it.table, [row for row in it.rows if row["backbone"] == backbone]
    found = [record for runs in mine.values() for record in all_records(runs)]
    title = f"{table['title']} ({backbone})"
    with mpl.rc_context(STYLE):
        trained = any(len(record.epochs) > 1 for record in found)  # a model that is scored once has no curve
        yield "curves", curves(table, mine, title) if trained else None
        scored = any(row["scores"] for row in rows if row["task"] in table["tasks"])
        yield "parameters", against_parameters(table, rows, title) if scored else None
        differences = to_lora(table, rows)
        yield "differences", forest(differences, f"{title}, against {rival(table)}") if differences else None
        for number, (x, lines) in enumerate(table.get("sweeps", []), 1):
            yield f"sweep{number}", sweep(table, mine, rows, title, x, lines) if scored else None
        if table.get("spectrum"):
            counted = any("singular_values_above_0.1" in record.epochs[-1]["report"] for record in found)
            yield "spectrum", spectrum(table, mine, title) if counted else None


def curves(table: dict, cells: dict, title: str) -> Figure:
    """The selection metric by epoch: mean and sd over the seeds, and over the values of n of a row that has several."""
    figure, panels = _panels(_tasks(table, cells), title)
    for (number, task), runs in cells.items():
        found = list(all_records(runs))
        values = 100 * np.array([[entry["metrics"][r.metric] for entry in r.epochs] for r in found])  # (runs, epochs)
        epochs = [entry["epoch"] for entry in found[0].epochs]
        sd = values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
        _band(panels[task], epochs, values.mean(0), sd, number, table["rows"][number]["label"])
    for axes in panels.values():
        axes.xaxis.get_major_locator().set_params(integer=True)
    _finish(figure, panels, "epoch", "score, %")
    return figure


def against_parameters(table: dict, rows: list[dict], title: str) -> Figure:
    """Mean and sd of each row against its trained adapter parameters, one panel per task; a row without any is a level.

    Rows of one count (to two digits) stand side by side. Steps follow the highest mean for at most so many parameters.
    """
    scored = [row for row in rows if row["scores"] and row["adapter_params"] != ""]
    figure, panels = _panels([task for task in table["tasks"] if any(row["task"] == task for row in scored)], title, 5)
    counts = [row["adapter_params"] for row in scored if row["adapter_params"]] or [1]
    left, right, looks, winners = min(counts) / 2, 2 * max(counts), _looks(scored), {}
    for task, axes in panels.items():
        axes.set(xscale="log", xlim=(left, right))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.minorticks_off()
        mine = [row for row in scored if row["task"] == task]
        columns = [f"{row['adapter_params']:.1e}" for row in mine]
        for number, row in enumerate(mine):
            label, score, column = row["row"], row["scores"]["best"], columns[number]
            if row["adapter_params"]:
                beside = columns[:number].count(column) - (columns.count(column) - 1) / 2
                place = row["adapter_params"] * (right / left) ** (0.014 * beside)  # 1.4 % of the axis apart
                axes.errorbar(place, score.mean, score.sd or 0, elinewidth=0.8, ls="none", label=label, **looks[label])
            else:
                _level(axes, label, score, looks[label]["color"])
        winners[task] = _steps(axes, mine)
    _finish(figure, panels, "adapter parameters (equal counts stand side by side)", "score at the best epoch, %")
    for task, axes in panels.items():
        axes.set_xlabel(axes.get_xlabel() + "\n" + textwrap.fill(f"steps: {'; '.join(winners[task])}", 80))
    return figure


def _looks(rows: list[dict]) -> dict[str, dict]:
    """By label: one colour per row of the table, a marker of its own for each of its lines, hollow for a mean over n."""
    lines: Counter[int] = Counter()  # so far, by row of the table
    looks = {}
    for row in rows:
        if row["row"] not in looks:
            number = row["number"]
            marker = MARKERS[(number + 3 * lines[number]) % len(MARKERS)]
            face = "white" if row["which"] == "mean" else _look(number)["color"]
            looks[row["row"]] = _look(number) | {"marker": marker, "markerfacecolor": face}
            lines[number] += 1
    return looks


def _level(axes: Axes, label: str, score: Score, colour: str) -> None:
    """A score that needs no adapter parameters: a line across, named at its right end, and its sd."""
    axes.axhline(score.mean, color=colour, linewidth=0.8, linestyle="--")
    axes.axhspan(score.mean - (score.sd or 0), score.mean + (score.sd or 0), color=colour, alpha=0.1, linewidth=0)
    axes.annotate(f"{label} (no adapter)", (1, score.mean), (0, 2), xycoords=axes.get_yaxis_transform(),
                  textcoords="offset points", ha="right", fontsize=7)  # fmt: skip


def _steps(axes: Axes, rows: list[dict]) -> list[str]:
    """Draw the highest mean for at most so many parameters; returns the rows that raise it."""
    left, right = axes.get_xlim()
    x, y, names = [], [], []
    for row in sorted(rows, key=lambda row: (row["adapter_params"], -row["scores"]["best"].mean)):
        if not y or row["scores"]["best"].mean > y[-1]:
            x.append(row["adapter_params"] or left)
            y.append(row["scores"]["best"].mean)
            names.append(row["row"])
    look = {"color": "grey", "linewidth": 0.8, "zorder": 1, "label": "steps: best mean up to so many parameters"}
    axes.step([*x, right], [*y, y[-1]], where="post", **look)
    return names


def to_lora(table: dict, rows: list[dict]) -> list[tuple[str, float, float, float, int, str]]:
    """(row, mean difference to its row of LoRA, its interval, seeds, tasks) over the tasks and seeds of both.

    Of the estimates the one in which nothing is chosen on the rows that are scored."""
    lora_of = {row["row"]: reference(table, table["rows"][row["number"]]) for row in rows}
    by_row = {label: {row["task"]: row["scores"]["split"].values for row in rows if row["row"] == label and row["scores"]}
              for label in dict.fromkeys(row["row"] for row in rows)}  # fmt: skip
    found = []
    for label, tasks in by_row.items():
        lora = lora_of[label]
        both = [task for task in table["tasks"] if task in tasks and task in by_row.get(lora, {})]
        seeds = (
            sorted(set.intersection(*(set(by_row[row][task]) for task in both for row in (label, lora))))
            if both
            else []
        )
        if label != lora and len(seeds) > 1:
            gaps = np.array([[tasks[task][seed] - by_row[lora][task][seed] for seed in seeds] for task in both])
            found.append((label, float(gaps.mean()), *stats.average_interval(gaps), len(seeds), ", ".join(both)))
    return found


def forest(differences: list[tuple[str, float, float, float, int, str]], title: str) -> Figure:
    """One line per row: the mean difference to LoRA and its interval; hollow without one where all seeds agree."""
    figure = Figure(figsize=(6, 1.1 + 0.28 * len(differences)), layout="constrained")
    axes = figure.subplots()
    same = [bool(np.isclose(low, high)) for _, _, low, high, *_ in differences]
    for place, (_, mean, low, high, *_) in enumerate(differences):
        if same[place]:
            axes.plot(mean, place, "o", color=COLOURS[0], markersize=4, markerfacecolor="white")
        else:
            axes.plot([low, high], [place, place], color=COLOURS[0])
            axes.plot(mean, place, "o", color=COLOURS[0], markersize=4)
    axes.axvline(0, color="black", linewidth=0.8, zorder=1)
    axes.set_yticks(range(len(differences)), [f"{label} ({tasks})" for label, *_, tasks in differences])
    axes.set_ylim(len(differences) - 0.5, -0.5)
    seeds = [count for *_, count, _ in differences]
    among = f"{min(seeds)}" if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)}"
    lines = [
        "difference in points at the same seeds, epoch and n chosen on the other half",
        f"bootstrap 95 % over {among} seeds: too narrow at few seeds (at three they cover about 80 %)",
        *["hollow: the same difference at every seed, so no interval"] * any(same),
    ]
    axes.set_xlabel("\n".join(lines), loc="right")
    _title(figure, title)
    return figure


def sweep(table: dict, cells: dict, rows: list[dict], title: str, x_key: str, line_key: str | None) -> Figure:
    """Score against the setting `x_key`, one line per value of `line_key` that has two points; published points hollow.

    The axis is logarithmic to base 2, or about 0 linear where the setting can be 0; its ticks are the grid's own values."""
    figure, panels = _panels([*_tasks(table, cells), *filter(None, [table["average"]])], title, 5)
    ticks = sorted({float(row["points"][x_key]) for row in table["rows"] if x_key in row["points"]})
    for axes in panels.values():
        if ticks[0] > 0:
            axes.set_xscale("log", base=2)
        else:
            axes.set_xscale("symlog", linthresh=min(tick for tick in ticks if tick > 0), linscale=0.5)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], rotation=0 if ticks[0] > 0 else 90)
        axes.minorticks_off()
    lines: dict[tuple, list] = {}
    for row in rows:
        points = table["rows"][row["number"]]["points"]
        if not row["scores"] or row["task"] not in panels or x_key not in points or row["which"] in ("best", "alone"):
            continue
        score = row["scores"]["best"]
        line = (row["task"], "" if line_key is None else str(points.get(line_key)))
        lines.setdefault(line, []).append((float(points[x_key]), score.mean, score.sd or 0.0))
    lines = {line: points for line, points in lines.items() if len(points) > 1}
    for (task, value), points in lines.items():
        order = sorted({line for _, line in lines})
        x, mean, sd = np.array(sorted(points)).T
        _band(panels[task], x, mean, sd, order.index(value), f"{line_key}={value}" if line_key else "ours")
    for row in rows:
        points = table["rows"][row["number"]]["points"]
        if row["published"] and row["task"] in panels and x_key in points:
            place = float(points[x_key]), float(row["published"])
            panels[row["task"]].plot(*place, "o", color="grey", fillstyle="none", label="published")
    _finish(figure, panels, x_key, "score at the best epoch, %")
    return figure


def spectrum(table: dict, cells: dict, title: str) -> Figure:
    """The number of singular values of each layer's update above 0.1 after training, mean over seeds, a panel per module."""
    counts: dict[tuple[str, int], dict[str, list[int]]] = {}  # (panel, row) -> layer -> one count per seed
    for (number, task), runs in cells.items():
        for record in all_records(runs):
            for layer, count in record.epochs[-1]["report"].get("singular_values_above_0.1", {}).items():
                module = f"{task}: {layer.rpartition('.')[2]}"
                counts.setdefault((module, number), {}).setdefault(layer, []).append(count)
    figure, panels = _panels(list(dict.fromkeys(module for module, _ in counts)), title)
    for (module, number), layers in counts.items():
        means = [np.mean(values) for values in layers.values()]
        panels[module].plot(range(len(means)), means, label=table["rows"][number]["label"], **_look(number))
    _finish(figure, panels, "layer", "singular values above 0.1")
    return figure


def _tasks(table: dict, cells: dict) -> list[str]:
    return [task for task in table["tasks"] if any(found == task for _, found in cells)]


def _panels(tasks: list[str], title: str, width: float = 2.6) -> tuple[Figure, dict[str, Axes]]:
    """Panels of that many inches, one per task, as many side by side as a page takes."""
    across = min(len(tasks), int(10.4 / width))
    down = -(-len(tasks) // across)
    figure = Figure(figsize=(max(5.0, width * across), 2.5 * down), layout="constrained")
    _title(figure, title)
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    for each, task in zip(axes, tasks, strict=False):
        each.set_title(task)
    for each in axes[len(tasks) :]:
        each.remove()
    return figure, dict(zip(tasks, axes, strict=False))


def _title(figure: Figure, text: str) -> None:
    figure.suptitle(textwrap.fill(text, int(13 * figure.get_figwidth())), fontsize=9)


def _look(number: int) -> dict:
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], "markersize": 4}


def _band(axes: Axes, x: list, mean: np.ndarray, sd: np.ndarray, number: int, label: str) -> None:
    look = _look(number)
    axes.plot(x, mean, label=label, **look)
    axes.fill_between(x, mean - sd, mean + sd, color=look["color"], alpha=0.15, linewidth=0)


def _finish(figure: Figure, panels: dict[str, Axes], x: str, y: str) -> None:
    """Axis labels, and one legend for all panels below them."""
    named = {}
    for axes in panels.values():
        axes.set_xlabel(x)
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel(y)
        named |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    width = figure.get_figwidth()
    columns = int(width // 2.2)
    figure.set_figheight(figure.get_figheight() + 0.18 * -(-len(named) // columns))
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=columns)


def _save(figure: Figure, stem: Path) -> list[Path]:
    """.svg and .png without dates, so that the same records give the same files."""
    with mpl.rc_context(STYLE):
        svg = write_atomic(stem.with_name(f"{stem.name}.svg"),
                           lambda file: figure.savefig(file, format="svg", metadata={"Date": None}))  # fmt: skip
        png = write_atomic(stem.with_name(f"{stem.name}.png"),
                           lambda file: figure.savefig(file, format="png", dpi=120, metadata={"Software": None}))  # fmt: skip
    return [svg, png]
