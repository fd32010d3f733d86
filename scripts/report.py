"""Write report.html, one self-contained page, from the records of a results folder: `python scripts/report.py [DIR]`."""

import argparse
import sys

from melora_bench.results.report import write
from melora_bench.training.processes import interruptible


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="?", help="where the records are; default: the committed results")
    try:
        with interruptible():
            print(f"wrote {write(parser.parse_args().results)}")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
