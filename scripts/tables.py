"""Regenerate tables from the records: `python scripts/tables.py [NAME ...] [--results DIR] [--experiment NAME]`; all papers' by
default."""

import argparse
import sys

from melora_bench.records import ROOT
from melora_bench.tables import regenerate, with_numbers


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [path.stem for path in sorted((ROOT / "configs" / "table").glob("*.yaml"))]
    parser.add_argument("names", nargs="*", help=f"of {', '.join(names)}; default: all of the committed results")
    parser.add_argument("--results", help="where the records are, if not in the table's own place")
    parser.add_argument("--experiment", help="whose records, if not the table's own: what the sweep was given")
    arguments = parser.parse_args()
    try:
        for name in arguments.names or with_numbers(names, arguments.results):
            csv, markdown, tex = regenerate(name, arguments.results, arguments.experiment)
            if arguments.names:
                print(markdown.read_text())
            print(f"wrote {csv}, {markdown.name} and {tex.name}")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
