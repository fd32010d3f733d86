"""List a grid's points as done, running, failed or missing: `python scripts/status.py [TABLE ...] [overrides]`."""

import collections
import sys

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from melora_bench.grid import points
from melora_bench.points import Point, compose_run
from melora_bench.processes import interruptible
from melora_bench.tables import load_grid


def main(arguments: list[str]) -> int:
    overrides = [argument for argument in arguments if "=" in argument]
    tables = [argument for argument in arguments if "=" not in argument] or ["melora_table2", "mplora_table2"]
    try:
        shown = [show(table, overrides, alone=len(tables) == 1) for table in tables]
        return 0 if any(shown) else 1
    except (ValueError, HydraException, OmegaConfBaseException) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def show(table: str, overrides: list[str], alone: bool = True) -> bool:
    """Print the states of a table's points; False, saying so, if a selection among several tables leaves it none."""
    totals: collections.Counter = collections.Counter()
    try:
        jobs = points(load_grid(table)["table"], overrides)
    except ValueError as error:
        if alone:
            raise
        print(f"{table}: {error}\n")
        return False
    for job in jobs:
        point = Point.of(*compose_run([f"table={table}", *job]))
        states = {seed: point.state(seed) for seed in point.config["seeds"]}
        totals.update(states.values())
        groups = {
            state: [seed for seed in states if states[seed] == state]
            for state in ("done", "running", "failed", "missing")
        }
        text = "  ".join(f"{state} {seeds}" for state, seeds in groups.items() if seeds)
        print(f"{' '.join(job):60}  {point.name}  {text}")
    counts = ", ".join(f"{totals[state]} {state}" for state in ("done", "running", "failed", "missing"))
    print(f"{table}: {counts}\n")
    return True


if __name__ == "__main__":
    with interruptible():
        sys.exit(main(sys.argv[1:]))
