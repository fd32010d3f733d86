"""Write a trained adapter for other libraries: `melora-bench export`."""

import sys

from melora_bench.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
