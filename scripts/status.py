"""List a grid's points as done, refused, running, failed or missing: `python scripts/status.py [TABLE ...] [overrides]`.

With --experiment: print only the name of the experiment that holds their records.
"""

import collections
import sys

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from melora_bench.grids.jobs import jobs
from melora_bench.grids.overrides import split_arguments
from melora_bench.grids.tables import load_table
from melora_bench.grids.trials import experiment
from melora_bench.training.configs import compose_run
from melora_bench.training.points import Point
from melora_bench.training.processes import interruptible

NAME, BOTH = "--experiment", ["melora_table2", "mplora_table2"]
STATES = ("done", "refused", "running", "failed", "missing")


def main(arguments: list[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    tables, overrides = split_arguments([argument for argument in arguments if argument != NAME])
    tables = tables or BOTH
    try:
        if NAME in arguments:
            print(*(experiment(load_table(table), overrides)[0] for table in tables))
            return 0
        shown = [show(table, overrides, alone=len(tables) == 1) for table in tables]
        return 0 if any(shown) else 1
    except (ValueError, HydraException, OmegaConfBaseException) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def show(table: str, overrides: list[str], alone: bool = True) -> bool:
    """Print the states of a table's points; False, saying so, if a selection among several tables leaves it none."""
    totals: collections.Counter = collections.Counter()
    grid = load_table(table)
    try:
        todo = jobs(grid, overrides)
    except ValueError as error:
        if alone:
            raise
        print(f"{table}: {error}\n")
        return False
    name, trial = experiment(grid, overrides)
    for job in todo:
        point = Point.of(*compose_run([f"table={table}", *job, f"experiment={name}"]))
        states = {seed: point.state(seed) for seed in point.config.seeds}
        refused = _refusals(point, [seed for seed in states if states[seed] == "done"])
        states |= dict.fromkeys(refused, "refused")
        totals.update(states.values())
        groups = {state: [seed for seed in states if states[seed] == state] for state in STATES}
        text = "  ".join(f"{state} {seeds}" for state, seeds in groups.items() if seeds)
        print(f"{' '.join(job):60}  {point.name}  {text}")
        for reason in refused.values():
            print(f"  refused: {reason}")
    counts = ", ".join(f"{totals[state]} {state}" for state in STATES if totals[state] or state != "refused")
    print(f"{table}{f' (experiment={name})' if trial else ''}: {counts}\n")
    return True


def _refusals(point: Point, seeds: list[int]) -> dict[int, str]:
    """Imported where there is a record only: it takes torch."""
    if not seeds:
        return {}
    from melora_bench.training.inputs import refusals

    return refusals(point, seeds)


if __name__ == "__main__":
    with interruptible():
        sys.exit(main(sys.argv[1:]))
