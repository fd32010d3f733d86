"""List the points of grids as done, refused, running, failed or missing, each with the reason.

    melora-bench status
    melora-bench status mplora_table1 task=mrpc

Without a name: both papers' Table 2. Settings are those of the sweep. A point is called by what distinguishes it in its
grid; at the end of its line stands the name of its files.
"""

import collections
import contextlib
from dataclasses import dataclass

from melora_bench.commands.arguments import tables_and_overrides
from melora_bench.commands.running import command
from melora_bench.grids.jobs import jobs
from melora_bench.grids.tables import load_table
from melora_bench.grids.trials import experiment
from melora_bench.training.configs import compose_run
from melora_bench.training.points import Point

BOTH = ["melora_table2", "mplora_table2"]
STATES = ("done", "refused", "running", "failed", "missing")


@dataclass(frozen=True, kw_only=True)
class Line:
    """A point: what it is called, the state of each of its seeds, and why (a reason, the seeds that have it)."""

    point: Point
    states: dict[int, str]
    reasons: list[str]

    def text(self, width: int) -> str:
        groups = {state: [seed for seed in self.states if self.states[seed] == state] for state in STATES}
        states = "  ".join(f"{state} {seeds}" for state, seeds in groups.items() if seeds)
        return "\n".join(
            [f"{self.point.label:{width}}  {states}  {self.point.name}", *(f"  {reason}" for reason in self.reasons)]
        )


@command
def main(arguments: list[str]) -> int:
    names, overrides = tables_and_overrides(arguments)
    names = names or BOTH
    shown = [show(name, overrides, alone=len(names) == 1) for name in names]
    return 0 if any(shown) else 1


def show(name: str, overrides: list[str], alone: bool = True) -> bool:
    """Print the states of a table's points; False, saying so, if a selection among several tables leaves it none."""
    table = load_table(name)
    try:
        selected = jobs(table, overrides)
    except ValueError as error:
        if alone:
            raise
        print(f"{name}: {error}\n")
        return False
    where, trial = experiment(table, overrides)
    points = [Point.of(*compose_run([f"table={name}", *job, f"experiment={where}"])) for job in selected]
    width = max(len(point.label) for point in points)
    totals: collections.Counter[str] = collections.Counter()
    for point in points:
        line = _line(point)
        totals.update(line.states.values())
        print(line.text(width), flush=True)
    counts = ", ".join(f"{totals[state]} {state}" for state in STATES if totals[state] or state != "refused")
    print(f"{name}{f' (experiment={where})' if trial else ''}: {counts}\n")
    return True


def _line(point: Point) -> Line:
    states = {seed: point.state(seed) for seed in point.config.seeds}
    refused = _refusals(point, [seed for seed in states if states[seed] == "done"])
    states |= dict.fromkeys(refused, "refused")
    reasons = [f"refused: {reason}" for reason in refused.values()]
    reasons += _failures(point, [seed for seed in states if states[seed] == "failed"])
    return Line(point=point, states=states, reasons=reasons)


def _refusals(point: Point, seeds: list[int]) -> dict[int, str]:
    """Imported where there is a record only: it takes torch."""
    if not seeds:
        return {}
    from melora_bench.training.inputs import refusals

    return refusals(point, seeds)


def _failures(point: Point, seeds: list[int]) -> list[str]:
    """Why seeds failed, and where the trace is; seeds that failed for one reason share the line."""
    by_reason: dict[str, list[int]] = {}
    for seed in seeds:
        with contextlib.suppress(OSError):  # gone: the seed has just been trained again
            text = (point.output(seed) / "error.txt").read_text(encoding="utf-8", errors="replace").strip()
            by_reason.setdefault(text.partition("\n")[0], []).append(seed)
    return [
        f"failed: {reason} (seeds {several}; the trace is in {point.output(several[0]) / 'error.txt'})"
        for reason, several in by_reason.items()
    ]
