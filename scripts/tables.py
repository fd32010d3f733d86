"""Regenerate tables from the records: `python scripts/tables.py [NAME ...] [results_dir=DIR] [experiment=NAME]`.

Without a name: all papers' tables. The options are those that the sweep was given, also as --results DIR and
--experiment NAME. Its other overrides say whether it was a trial, whose records have an experiment of their own.
"""

import argparse
import sys

from hydra.errors import HydraException

from melora_bench.files import home, reason
from melora_bench.grid import experiment as experiment_of
from melora_bench.grid import split_arguments
from melora_bench.processes import interruptible
from melora_bench.records import ROOT
from melora_bench.tables import load_grid, regenerate, with_numbers


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [path.stem for path in sorted((ROOT / "configs" / "table").glob("*.yaml"))]
    parser.add_argument("names", nargs="*", help=f"of {', '.join(names)}; default: all of the committed results")
    parser.add_argument("--results", help="where the records are, if not in the table's own place")
    parser.add_argument("--experiment", help="whose records, if not the table's own: what the sweep was given")
    arguments = parser.parse_args(given)
    try:
        wanted, overrides, results = split_arguments(arguments.names)
        results = results or (arguments.results and home(arguments.results))
        for name in wanted or with_numbers(names, results):
            experiment = arguments.experiment or (experiment_of(load_grid(name), overrides)[0] if wanted else None)
            csv, markdown, tex = regenerate(name, results, experiment)
            if wanted:
                print(markdown.read_text())
            print(f"wrote {csv}, {markdown.name} and {tex.name}")
    except (ValueError, HydraException) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {reason(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    with interruptible():
        sys.exit(main())
