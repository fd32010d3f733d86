"""Regenerate tables from the records, as Markdown, CSV and LaTeX under <results_dir>/tables.

    melora-bench tables
    melora-bench tables mplora_table2 results_dir=DIR experiment=NAME

Without a name: every table of the committed results. With a name the table is shown, too; the settings are those that
the sweep was given, which say whether it was a trial, whose records have an experiment of their own.
"""

from collections.abc import Callable

from hydra.core.override_parser.overrides_parser import OverridesParser
from rich.console import Console

from melora_bench.commands.arguments import tables_and_overrides
from melora_bench.commands.running import command
from melora_bench.files import options
from melora_bench.grids.tables import load_table
from melora_bench.grids.trials import experiment as experiment_of
from melora_bench.results import terminal
from melora_bench.results.assembled import assemble, with_numbers
from melora_bench.results.tables import write

Lines = Callable[[str, str | None, str | None, bool], list[str]]


@command
def main(arguments: list[str]) -> int:
    return print_for_tables(arguments, _written)


def print_for_tables(arguments: list[str], make: Lines) -> int:
    """Print the lines of `make(table, results_dir, experiment, named)` for every table that a command line names, or,
    none being named, for all of the committed results."""
    named, overrides = tables_and_overrides(arguments)
    results = setting("results_dir", overrides)
    for name in named or with_numbers(sorted(options("table")), results):
        given = setting("experiment", overrides)
        experiment = given or (experiment_of(load_table(name), overrides)[0] if named else None)
        for line in make(name, results, experiment, bool(named)):
            print(line)
    return 0


def setting(key: str, overrides: list[str]) -> str | None:
    """The last value that the overrides give to a key, without Hydra's quotes. Raises OverrideParseException."""
    given = [override for override in overrides if override.startswith(f"{key}=")]
    values = [override.value() for override in OverridesParser.create().parse_overrides(given)]
    return str(values[-1]) if values else None


def _written(name: str, results: str | None, experiment: str | None, named: bool) -> list[str]:
    assembled = assemble(name, results, experiment)
    csv, markdown, tex = write(assembled, name, experiment)
    wrote = f"wrote {csv}, {markdown.name} and {tex.name}"
    console = Console()
    if named and console.is_terminal:
        terminal.show(assembled, console)
        return [wrote]
    return [*[markdown.read_text()] * named, wrote]
