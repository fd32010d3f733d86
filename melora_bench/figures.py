"""Figures from records: sweeps over a setting, training curves, score against parameters, differences to LoRA."""

import textwrap
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from melora_bench import stats
from melora_bench.estimates import Score, all_records
from melora_bench.files import write_atomic
from melora_bench.grid import reference
from melora_bench.tables import Assembled, assemble

# Okabe and Ito's colours, which colour-blind readers can tell apart, and a marker of its own for each.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
MARKERS = "osD^vP*X"
STYLE = {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3,
         "legend.frameon": False, "svg.fonttype": "none", "svg.hashsalt": "melora_bench"}  # fmt: skip


def draw(name: str, results_dir: str | None = None) -> list[Path]:
    """Write <results_dir>/figures/<table>_<backbone>_<kind>.svg and .png of every figure that the table's records allow.

    Raises ValueError for a bad record. A table without records has no figures.
    """
    it, paths = assemble(name, results_dir), []
    for backbone in sorted({backbone for backbone, _, _ in it.cells}):
        for kind, figure in _figures(it, backbone):
            paths += _save(figure, it.results / "figures" / f"{name}_{backbone}_{kind}")
    return paths


def _figures(it: Assembled, backbone: str) -> Iterator[tuple[str, Figure]]:
    """(kind, figure) of one backbone."""
    mine = {(number, task): runs for (name, number, task), runs in it.cells.items() if name == backbone}
    table, rows = it.table, [row for row in it.rows if row["backbone"] == backbone]
    title = f"{table['title']} ({backbone})"
    with mpl.rc_context(STYLE):
        yield "curves", curves(table, mine, title)
        if any(row["scores"] for row in rows if row["task"] in table["tasks"]):
            yield "parameters", against_parameters(table, rows, title)
        if differences := to_lora(table, rows):
            yield "differences", forest(differences, f"{title}, against {reference(table)}")
        for number, (x, lines) in enumerate(table.get("sweeps", []), 1):
            if any(row["scores"] for row in rows):
                yield f"sweep{number}", sweep(table, mine, rows, title, x, lines)
        if table.get("spectrum") and any("singular_values_above_0.1" in record.epochs[-1]["report"]
                                         for runs in mine.values() for record in all_records(runs)):  # fmt: skip
            yield "spectrum", spectrum(table, mine, title)


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
    """Mean and sd of each row against its trained adapter parameters, one panel per task; equal counts are set apart."""
    scored = [row for row in rows if row["scores"] and row["adapter_params"] != ""]
    figure, panels = _panels([task for task in table["tasks"] if any(row["task"] == task for row in scored)], title)
    shown = list(dict.fromkeys(row["row"] for row in scored))
    for row in scored:
        score: Score = row["scores"]["best"]
        look = _look(row["number"]) | {"fillstyle": "none" if row["which"] == "mean" else "full"}
        place = max(row["adapter_params"], 1) * 1.04 ** (shown.index(row["row"]) - len(shown) / 2)
        panels[row["task"]].errorbar(
            place, score.mean, yerr=score.sd or 0, capsize=2, ls="none", label=row["row"], **look
        )
    counts = [max(row["adapter_params"], 1) for row in scored]
    for axes in panels.values():
        axes.set_xscale("log")
        axes.set_xlim(min(counts) / 2, 2 * max(counts))
    _finish(figure, panels, "adapter parameters", "score at the best epoch, %")
    return figure


def to_lora(table: dict, rows: list[dict]) -> list[tuple[str, float, float, float, str]]:
    """(row, mean difference to the first row of LoRA, its interval, tasks) over the tasks and seeds of both.

    Of the estimates the one in which nothing is chosen on the rows that are scored."""
    lora = reference(table)
    by_row = {label: {row["task"]: row["scores"]["split"].values for row in rows if row["row"] == label and row["scores"]}
              for label in dict.fromkeys(row["row"] for row in rows)}  # fmt: skip
    found = []
    for label, tasks in by_row.items():
        both = [task for task in table["tasks"] if task in tasks and task in by_row.get(lora, {})]
        seeds = (
            sorted(set.intersection(*(set(by_row[row][task]) for task in both for row in (label, lora))))
            if both
            else []
        )
        if label != lora and len(seeds) > 1:
            gaps = np.array([[tasks[task][seed] - by_row[lora][task][seed] for seed in seeds] for task in both])
            found.append((label, float(gaps.mean()), *stats.average_interval(gaps), ", ".join(both)))
    return found


def forest(differences: list[tuple[str, float, float, float, str]], title: str) -> Figure:
    """One line per row: the mean difference to LoRA and its interval."""
    figure = Figure(figsize=(6, 0.8 + 0.28 * len(differences)), layout="constrained")
    axes = figure.subplots()
    for place, (_, mean, low, high, _) in enumerate(differences):
        axes.plot([low, high], [place, place], color=COLOURS[0])
        axes.plot(mean, place, "o", color=COLOURS[0], markersize=4)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(differences)), [f"{label} ({tasks})" for label, *_, tasks in differences])
    axes.invert_yaxis()
    axes.set_xlabel("difference in points at the same seeds (bootstrap 95 %),\nepoch and n chosen on the other half")
    _title(figure, title)
    return figure


def sweep(table: dict, cells: dict, rows: list[dict], title: str, x_key: str, line_key: str | None) -> Figure:
    """Score against the setting `x_key`, one line per value of `line_key` that has two points; published points hollow."""
    figure, panels = _panels([*_tasks(table, cells), *filter(None, [table["average"]])], title)
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
                module = f"{task}: {layer.rsplit('.', 1)[1]}"
                counts.setdefault((module, number), {}).setdefault(layer, []).append(count)
    figure, panels = _panels(list(dict.fromkeys(module for module, _ in counts)), title)
    for (module, number), layers in counts.items():
        means = [np.mean(values) for values in layers.values()]
        panels[module].plot(range(len(means)), means, label=table["rows"][number]["label"], **_look(number))
    _finish(figure, panels, "layer", "singular values above 0.1")
    return figure


def _tasks(table: dict, cells: dict) -> list[str]:
    return [task for task in table["tasks"] if any(found == task for _, found in cells)]


def _panels(tasks: list[str], title: str) -> tuple[Figure, dict[str, Axes]]:
    """A row of panels, one per task."""
    figure = Figure(figsize=(max(5.0, 2.6 * len(tasks)), 3.4), layout="constrained")
    _title(figure, title)
    axes = figure.subplots(1, len(tasks), squeeze=False)[0]
    for each, task in zip(axes, tasks, strict=True):
        each.set_title(task)
    return figure, dict(zip(tasks, axes, strict=True))


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
        named |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    next(iter(panels.values())).set_ylabel(y)
    width = figure.get_figwidth()
    columns = int(width // 1.8)
    figure.set_figheight(2.5 + 0.18 * -(-len(named) // columns))
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=columns)


def _save(figure: Figure, stem: Path) -> list[Path]:
    """.svg and .png without dates, so that the same records give the same files."""
    with mpl.rc_context(STYLE):
        svg = write_atomic(stem.with_name(f"{stem.name}.svg"),
                           lambda file: figure.savefig(file, format="svg", metadata={"Date": None}))  # fmt: skip
        png = write_atomic(stem.with_name(f"{stem.name}.png"),
                           lambda file: figure.savefig(file, format="png", dpi=120, metadata={"Software": None}))  # fmt: skip
    return [svg, png]
