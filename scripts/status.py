"""List the points of grids as done, refused, running, failed or missing: `melora-bench status`."""

import sys

from melora_bench.cli import main

if __name__ == "__main__":
    sys.exit(main(["status", *sys.argv[1:]]))
