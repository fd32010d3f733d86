"""Train one point, or with -m or table=NAME a grid of points: `melora-bench train`."""

import sys

from melora_bench.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
