"""What a table's grid will cost on this device: `python scripts/plan.py TABLE [overrides]`. Trains a few steps, keeps none."""

import sys

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from melora_bench.grids.overrides import split_arguments
from melora_bench.training.processes import interruptible


def main(arguments: list[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    tables, overrides = split_arguments(arguments)
    if len(tables) != 1:
        print("error: name one table: make plan TABLE=mplora_table1", file=sys.stderr)
        return 2
    from melora_bench.grids.plan import FORWARD_SHARE, PROBE_STEPS, plan
    from melora_bench.grids.tables import load_table

    try:
        costs = plan(tables[0], overrides)
    except (ValueError, HydraException, OmegaConfBaseException) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for cost in costs:
        what = (
            f"{len(cost.missing)} seeds  {cost.steps:>9,} steps  {cost.tokens:>13,} tokens  {duration(cost.hours):>9}"
        )
        if cost.problem:
            what = f"{len(cost.missing)} seeds  cost unknown"
        own = [item for item in cost.job if item not in overrides or item.startswith("task=")]
        print(f"{' '.join(own):60}  {what if cost.missing else 'done'}")
    missing = [cost for cost in costs if cost.missing]
    unknown = [cost for cost in missing if cost.problem]
    steps, tokens, evaluated, hours = (
        sum(getattr(cost, key) for cost in missing) for key in ("steps", "tokens", "evaluated", "hours")
    )
    records = sum(len(cost.missing) for cost in missing)
    print(f"{tables[0]}: {len(costs) - len(missing)} points done, {len(missing)} missing ({records} records)")
    if len(unknown) < len(missing):
        print(f"{steps:,} steps, {tokens:,} tokens to train on, {evaluated:,} to evaluate: about {duration(hours)} here "
              f"(from {PROBE_STEPS} steps per method; an evaluated token counts {FORWARD_SHARE:.2f})")  # fmt: skip
    table = load_table(tables[0])
    if table.trained_on:
        count = sum(len(cost.point.config.seeds) for cost in costs)
        print(f"the plan is of training: {count} models are then scored on "
              f"{', '.join(table.tasks)}; scripts/instructeval.py with a limit shows the time it takes")  # fmt: skip
    if unknown:
        print(f"the cost of {len(unknown)} points is unknown: {unknown[0].problem}")
    return 0


def duration(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"


if __name__ == "__main__":
    with interruptible():
        sys.exit(main(sys.argv[1:]))
