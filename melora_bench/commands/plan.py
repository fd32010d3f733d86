"""What a table's grid will cost on this device: points, steps, tokens, hours. Trains a few steps and keeps none.

    melora-bench plan mplora_table1
    melora-bench plan melora_table2 precision=bf16

Settings are those that the sweep is to be given.
"""

from melora_bench.commands.arguments import one_table
from melora_bench.commands.running import command
from melora_bench.grids.tables import load_table


@command
def main(arguments: list[str]) -> int:
    name, overrides = one_table(arguments, "melora-bench plan mplora_table1")
    from melora_bench.grids.plan import plan  # imports torch

    costs = plan(name, overrides)
    for cost in costs:
        print(f"{cost.point.label:40}  {_needs(cost) if cost.missing else 'done'}")
    for line in _totals(name, costs):
        print(line)
    return 0


def _needs(cost) -> str:
    if cost.problem:
        return f"{len(cost.missing)} seeds  cost unknown"
    return f"{len(cost.missing)} seeds  {cost.steps:>9,} steps  {cost.tokens:>13,} tokens  {_duration(cost.hours):>9}"


def _totals(name: str, costs: list) -> list[str]:
    """What is done and missing, what that takes, what comes on top, and why a cost is unknown."""
    from melora_bench.grids.plan import FORWARD_SHARE, PROBE_STEPS

    missing = [cost for cost in costs if cost.missing]
    unknown = [cost for cost in missing if cost.problem]
    records = sum(len(cost.missing) for cost in missing)
    lines = [f"{name}: {len(costs) - len(missing)} points done, {len(missing)} missing ({records} records)"]
    if len(unknown) < len(missing):
        steps, tokens, evaluated, hours = (
            sum(getattr(cost, key) for cost in missing) for key in ("steps", "tokens", "evaluated", "hours")
        )
        lines.append(
            f"{steps:,} steps, {tokens:,} tokens to train on, {evaluated:,} to evaluate: about {_duration(hours)} here "
            f"(from {PROBE_STEPS} steps per method; an evaluated token counts {FORWARD_SHARE:.2f})"
        )
    table = load_table(name)
    if table.trained_on:
        models = sum(len(cost.point.config.seeds) for cost in costs)
        lines.append(
            f"the plan is of training: {models} models are then scored on {', '.join(table.tasks)}; "
            "melora-bench score with a limit shows the time it takes"
        )
    if unknown:
        lines.append(f"the cost of {len(unknown)} points is unknown: {unknown[0].problem}")
    return lines


def _duration(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"
