"""Regenerate tables from the records: `python scripts/tables.py [NAME ...] [results_dir=DIR] [experiment=NAME]`.

Without a name: all papers' tables. The options are those that the sweep was given, also as --results DIR and
--experiment NAME; its other overrides change nothing here.
"""

import argparse
import sys

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from melora_bench.files import home, reason
from melora_bench.processes import interruptible
from melora_bench.records import ROOT
from melora_bench.tables import regenerate, with_numbers


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [path.stem for path in sorted((ROOT / "configs" / "table").glob("*.yaml"))]
    parser.add_argument("names", nargs="*", help=f"of {', '.join(names)}; default: all of the committed results")
    parser.add_argument("--results", help="where the records are, if not in the table's own place")
    parser.add_argument("--experiment", help="whose records, if not the table's own: what the sweep was given")
    arguments = parser.parse_args(given)
    wanted = [name for name in arguments.names if "=" not in name and name[:1] not in ("+", "~")]
    try:
        overrides = [home(name) for name in arguments.names if name.startswith(("results_dir=", "experiment="))]
        values = {item.key_or_group: item.value() for item in OverridesParser.create().parse_overrides(overrides)}
        results = values.get("results_dir", arguments.results and home(arguments.results))
        experiment = values.get("experiment", arguments.experiment)
        for name in wanted or with_numbers(names, results):
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
