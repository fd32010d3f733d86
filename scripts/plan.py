"""What a table's grid will cost on this device: `melora-bench plan`."""

import sys

from melora_bench.cli import main

if __name__ == "__main__":
    sys.exit(main(["plan", *sys.argv[1:]]))
