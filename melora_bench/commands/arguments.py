"""The command line of every command: names of tables, settings as key=value, and nothing with dashes but --help."""

from collections.abc import Iterable, Mapping

from melora_bench.external.nearest import nearest_name
from melora_bench.files import home, options
from melora_bench.grids.overrides import split_arguments

SWEEP_KEYS = ("results_dir", "output_dir", "experiment", "task", "method", "backbone", "data", "seeds")


class UsageError(ValueError):
    """A command line that no command takes: exit code 2."""


def nearest(name: str, names: Iterable[str]) -> str:
    """A question that names the nearest of `names`, to be put after a message; empty where none is near."""
    near = nearest_name(name, names)
    return f": did you mean {near}?" if near else ""


def tables_and_overrides(arguments: list[str]) -> tuple[list[str], list[str]]:
    """(tables, overrides) of a command on tables. Raises UsageError for a table or an option that there is not."""
    tables, overrides = split_arguments(arguments)
    _no_dashes(tables, SWEEP_KEYS)
    _no_dashes([override for override in overrides if override.startswith("-")], SWEEP_KEYS)
    there = sorted(options("table"))
    for table in tables:
        if table not in there:
            question = nearest(table, there)
            raise UsageError(
                f"table {table!r} is unknown{question}{'' if question else ':'} there are {', '.join(there)}"
            )
    return tables, overrides


def one_table(arguments: list[str], example: str) -> tuple[str, list[str]]:
    """(table, overrides) of a command on one table. Raises UsageError for none or several."""
    tables, overrides = tables_and_overrides(arguments)
    if len(tables) != 1:
        raise UsageError(f"name one table: {example}")
    return tables[0], overrides


def settings(
    arguments: list[str], known: Mapping[str, str | None], *, first: str | None = None
) -> dict[str, str | None]:
    """The values of a command with keys of its own: `known` with their defaults, a leading ~/ of a value made the home.

    first: the key of a value that stands alone. Raises UsageError for another key.
    """
    given: dict[str, str | None] = {}
    for argument in map(home, arguments):
        key, equals, value = argument.partition("=")
        if not equals and first and first not in given and not argument.startswith("-"):
            key, value = first, argument
        _no_dashes([key], known)
        if key not in known:
            has = f"it has {', '.join(f'{name}=' for name in known)}" if known else "it has none"
            question = nearest(key, known)
            raise UsageError(f"{key} is no option of this command{question}{'' if question else ';'} {has}")
        given[key] = _unquoted(value)
    return {**known, **given}


def _no_dashes(words: Iterable[str], keys: Iterable[str]) -> None:
    for word in words:
        if word.startswith("-"):
            name = word.partition("=")[0]
            near = nearest(name.strip("-"), [f"{key}=" for key in keys]) or nearest(name, ["--help"])
            raise UsageError(f"{name} is no option of this command{near or ': settings are given as key=value'}")


def _unquoted(value: str) -> str:
    """The value without quotes around all of it, which Hydra's overrides may have."""
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return value[1:-1] if quoted else value
