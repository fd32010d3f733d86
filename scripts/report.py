"""Write results/report.html, one self-contained page, from the records: `python scripts/report.py [results folder]`."""

import sys

from melora_bench.processes import interruptible
from melora_bench.report import write

if __name__ == "__main__":
    try:
        with interruptible():
            print(f"wrote {write(*sys.argv[1:2])}")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
