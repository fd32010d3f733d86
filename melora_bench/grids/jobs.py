"""From the rows of a table to the points of its grid, each as the overrides that compose it."""

import itertools

from melora_bench.grids.overrides import Choices, Override, split_overrides
from melora_bench.grids.tables import Table


def jobs(table: Table, overrides: list[str]) -> list[list[str]]:
    """The command-line overrides of every point of a table: rows x tasks, narrowed or changed by the user's overrides.

    The tasks are those of the columns, or the one that the table's models are trained on before they are scored on the
    columns. A row that is untrained has no point; a row with another backbone of its own than the one asked for is left
    out. `Override` says what an override does.

    Raises ValueError when nothing is left, naming what there is, and for an override that reaches no point.
    """
    selections, changes = split_overrides(table, overrides)
    rows: list[Choices] = [{"task": table.trained_tasks, **row.choices} for row in table.rows if not row.untrained]
    left = [
        choices
        for choices in rows
        if all(selection.selects(choices) for selection in selections.values())
        and _is_on_backbone(table, choices, changes.get("backbone"))
    ]
    if not left:
        asked = " ".join(f"{key}={','.join(selection.values)}" for key, selection in selections.items())
        there = {key: _all_values(table, key) for key in selections}
        has = "; ".join(f"{key}={','.join(dict.fromkeys(values))}" for key, values in there.items())
        raise ValueError(f"no point of this table has {asked}; it has {has}")
    for key in sorted(changes.keys() - {"backbone"}):
        if not any(changes[key].applies_to(choices) for choices in left):
            raise ValueError(f"{changes[key].text} changes no point: every row that is left has a value of its own")
    return [job for choices in left for job in _jobs_of_row(choices, selections, changes)]


def _jobs_of_row(choices: Choices, selections: dict[str, Override], changes: dict[str, Override]) -> list[list[str]]:
    """The points of a row: the product of its choices that are selected, with the changes that apply to it."""
    kept = {
        key: [value for value in values if key not in selections or value in selections[key].values]
        for key, values in choices.items()
    }
    applied = [change.text for change in changes.values() if change.applies_to(choices)]
    products = itertools.product(*kept.values())
    return [[f"{key}={value}" for key, value in zip(kept, values, strict=True)] + applied for values in products]


def _is_on_backbone(table: Table, choices: Choices, asked: Override | None) -> bool:
    """Whether a row is of the backbone that is asked for: it names none, or is the table's beside the row's own."""
    return "backbone" not in choices or not asked or asked.value in ("", table.backbone, *choices["backbone"])


def _all_values(table: Table, key: str) -> list[str]:
    """The values that the rows of a table list for a key."""
    if key == "task":
        return table.trained_tasks
    return [value for row in table.rows if key in row.settings for value in row.values(key)]
