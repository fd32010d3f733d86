"""A table in a terminal: one line per row, each score with a bar from the worst of its column to the best."""

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from melora_bench.results import audit
from melora_bench.results.assembled import Assembled
from melora_bench.results.markdown import footer
from melora_bench.results.sections import Section, estimate_titles, judged

WIDTH = 8  # of a bar, in characters
EIGHTHS = " ▏▎▍▌▋▊▉█"


def show(assembled: Assembled, console: Console) -> None:
    """Print the table's best epochs; the other estimates and the footer stand in its files."""
    title = next(iter(estimate_titles(assembled.table).values()))
    console.print(assembled.table.title, style="bold", markup=False)
    for section in assembled.sections:
        console.print(f"{section.heading}: {title}", markup=False)
        grids = [_grid(section, bars=True), _grid(section, bars=False), _grid(section, bars=False, scores_alone=True)]
        unlimited = console.options.update(width=10_000)
        fitting = [grid for grid in grids if console.measure(grid, options=unlimited).maximum <= console.width]
        console.print((fitting or grids[-1:])[0])
        for line in section.lines:
            if line.verdict and line.verdict.kind != "not_comparable":
                console.print(f"- {judged(line)}", markup=False)
    for verdict in audit.verdicts(assembled.table, assembled.cells) if assembled.table.audit else []:
        console.print("*", verdict.replace("**", ""), markup=False)
    console.print(footer(assembled)[0], markup=False, highlight=False)


def _grid(section: Section, *, bars: bool, scores_alone: bool = False) -> Grid:
    """The table with or without bars, and with or without what stands right of the scores."""
    head, printed = section.block("best")
    names = section.table.columns
    shown = 2 + len(names) if scores_alone else len(head)
    grid = Grid(head[0], box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(head[1:shown], 1):
        grid.add_column(name, justify="left" if bars and 1 < number < 2 + len(names) else "right")
    limits = _limits(section) if bars else {}
    for line in printed:
        ours = {
            each.task: each.scores["best"].mean for each in section.lines if each.label == line.label and each.scores
        }
        texts = list(line.texts)
        for i, name in enumerate(names, 1):
            if bars and not line.published and name in ours:
                texts[i] = f"{texts[i]} {bar(ours[name], *limits[name])}"
        label = f"published, {line.published}" if line.published else line.label
        grid.add_row(*map(Text, [label, *texts[: shown - 1]]))
    return grid


def _limits(section: Section) -> dict[str, tuple[float, float]]:
    """By column, the lowest and the highest mean."""
    means: dict[str, list[float]] = {}
    for line in section.lines:
        if line.scores:
            means.setdefault(line.task, []).append(line.scores["best"].mean)
    return {name: (min(values), max(values)) for name, values in means.items()}


def bar(value: float, low: float, high: float) -> str:
    """A bar of WIDTH characters for `high`, of an eighth of one for `low`."""
    eighths = 1 + round((value - low) / (high - low) * (8 * WIDTH - 1)) if high > low else 8 * WIDTH
    whole, rest = divmod(eighths, 8)
    return ("█" * whole + EIGHTHS[rest]).strip().ljust(WIDTH)
