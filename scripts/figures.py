"""Draw every figure that the records allow: `python scripts/figures.py [TABLE ...] [--results DIR]`."""

import argparse
import sys

from melora_bench.figures import draw
from melora_bench.processes import interruptible
from melora_bench.records import ROOT
from melora_bench.tables import with_numbers


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [path.stem for path in sorted((ROOT / "configs" / "table").glob("*.yaml"))]
    parser.add_argument("names", nargs="*", help=f"of {', '.join(names)}; default: all of the committed results")
    parser.add_argument("--results", help="where the records are, if not in the table's own place")
    arguments = parser.parse_args()
    try:
        for name in arguments.names or with_numbers(names, arguments.results):
            for path in draw(name, arguments.results):
                print(f"wrote {path}")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    with interruptible():
        sys.exit(main())
