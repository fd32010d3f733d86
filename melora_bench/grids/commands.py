"""What the commands have in common that make something of tables: scripts/tables.py and scripts/figures.py."""

import argparse
import sys
from collections.abc import Callable

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from melora_bench.files import home, options, reason
from melora_bench.grids.overrides import split_arguments
from melora_bench.grids.tables import load_table
from melora_bench.grids.trials import experiment as experiment_of
from melora_bench.results.assembled import with_numbers


def for_tables(
    description: str, given: list[str] | None, make: Callable[[str, str | None, str | None, bool], list[str]]
) -> int:
    """Print the lines of `make(table, results_dir, experiment, named)` for every table that a command line names, or, none
    being named, for all of the committed results; returns the exit code. What cannot be made ends in one line.

    given: the arguments, by default the process's.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = sorted(options("table"))
    parser.add_argument("names", nargs="*", help=f"of {', '.join(names)}; default: all of the committed results")
    parser.add_argument("--results", help="where the records are, if not in the table's own place")
    parser.add_argument("--experiment", help="whose records, if not the table's own: what the sweep was given")
    arguments = parser.parse_args(given)
    try:
        wanted, overrides = split_arguments(arguments.names)
        folder = [override for override in overrides if override.startswith("results_dir=")]
        values = [override.value() for override in OverridesParser.create().parse_overrides(folder)]
        results = values[-1] if values else arguments.results and home(arguments.results)
        for name in wanted or with_numbers(names, results):
            experiment = arguments.experiment or (experiment_of(load_table(name), overrides)[0] if wanted else None)
            for line in make(name, results, experiment, bool(wanted)):
                print(line)
    except (ValueError, HydraException) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {reason(error)}", file=sys.stderr)
        return 1
    return 0
