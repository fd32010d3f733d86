"""What the figures share: colours, panels, bands, legends, and files that the same records write byte for byte."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from melora_bench.files import write_atomic

# Okabe and Ito's colours, which colour-blind readers can tell apart, and a marker of its own for each.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
MARKERS = "osD^vP*X"
STYLE: Any = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "melora_bench",
}


def panels(names: Sequence[str], title: str, width: float = 2.6) -> tuple[Figure, dict[str, Axes]]:
    """A figure with one panel per name, each `width` inches wide, as many side by side as a page takes."""
    across = min(len(names), int(10.4 / width))
    down = -(-len(names) // across)
    figure = Figure(figsize=(max(5.0, width * across), 2.5 * down), layout="constrained")
    set_title(figure, title)
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    for panel, name in zip(axes, names, strict=False):
        panel.set_title(name)
    for panel in axes[len(names) :]:
        panel.remove()
    return figure, dict(zip(names, axes, strict=False))


def set_title(figure: Figure, text: str) -> None:
    """The title above all panels, in as many lines as it needs."""
    figure.suptitle(textwrap.fill(text, int(13 * figure.get_figwidth())), fontsize=9)


def look(number: int) -> dict[str, Any]:
    """Colour and marker of the row or line with this number."""
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], "markersize": 4}


def band(
    axes: Axes, x: Sequence[float] | np.ndarray, mean: np.ndarray, sd: np.ndarray, number: int, label: str
) -> None:
    """A line of means with a band of one standard deviation to each side."""
    style = look(number)
    axes.plot(x, mean, label=label, **style)
    axes.fill_between(x, mean - sd, mean + sd, color=style["color"], alpha=0.15, linewidth=0)


def finish(figure: Figure, by_name: dict[str, Axes], x: str, y: str) -> None:
    """Axis labels, and one legend for all panels below them."""
    named: dict[str, Artist] = {}
    for axes in by_name.values():
        axes.set_xlabel(x)
        place = axes.get_subplotspec()
        if place and place.is_first_col():
            axes.set_ylabel(y)
        named |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    columns = int(figure.get_figwidth() // 2.2)
    figure.set_figheight(figure.get_figheight() + 0.18 * -(-len(named) // columns))
    figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=columns)


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write <stem>.svg and .png without dates, so that the same records give the same files."""
    options: dict[str, dict[str, Any]] = {
        "svg": {"metadata": {"Date": None}},
        "png": {"dpi": 120, "metadata": {"Software": None}},
    }

    def written(end: str) -> Path:
        path = stem.with_name(f"{stem.name}.{end}")
        return write_atomic(path, lambda file: figure.savefig(file, format=end, **options[end]))

    with mpl.rc_context(STYLE):
        return [written(end) for end in options]
