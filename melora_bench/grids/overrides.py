"""What the `key=value` arguments of a command line mean beside a table: each selects points of its grid,
or changes them."""

from dataclasses import dataclass

from melora_bench.files import home
from melora_bench.grids.tables import Table

Choices = dict[str, list[str]]  # the values of every key of a row, the task included, as texts


@dataclass(frozen=True)
class Override:
    """One argument `key=value` of a command line, as it was typed.

    An override of the task, the method, or a method's key that some row lists, selects (`task=mrpc`, `method.n=4,8`).
    Any other applies to every point, except in rows that set its key themselves.
    """

    text: str

    @property
    def key(self) -> str:
        return self.text.partition("=")[0]

    @property
    def value(self) -> str:
        return self.text.partition("=")[2]

    @property
    def values(self) -> list[str]:
        """The values of a selection: what stands between commas."""
        return [value.strip() for value in self.value.split(",")]

    @property
    def is_sweep(self) -> bool:
        """Whether the value is several, separated by commas; a list, a mapping or a quoted text is one."""
        return "," in self.value and self.value[0] not in "[{'\""

    def selects(self, choices: Choices) -> bool:
        """Whether a row with these choices has a point that the selection keeps."""
        return any(value in self.values for value in choices.get(self.key, []))

    def applies_to(self, choices: Choices) -> bool:
        """Whether the override changes the points of a row with these choices: it does not set the key itself."""
        return self.key not in choices


def split_overrides(table: Table, overrides: list[str]) -> tuple[dict[str, Override], dict[str, Override]]:
    """(selections, changes) of a command line, by key; of a key that is given twice, the last counts.

    Raises ValueError for a change that has several values.
    """
    given = [Override(text) for text in overrides]
    narrowing = table.narrowing
    for override in given:
        if override.is_sweep and override.key not in narrowing:
            raise ValueError(
                f"{override.key}={override.value}: a table can be narrowed by {', '.join(sorted(narrowing))}; give "
                f"{override.key} one value"
            )
    selections = {override.key: override for override in given if override.key in narrowing}
    return selections, {override.key: override for override in given if override.key not in narrowing}


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """(tables, overrides) of a command line that names tables beside the overrides of their sweep."""
    overrides = [argument for argument in arguments if "=" in argument or argument[:1] in ("+", "~")]
    return [argument for argument in arguments if argument not in overrides], list(map(home, overrides))
