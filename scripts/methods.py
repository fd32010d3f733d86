"""Write docs/methods.md: `melora-bench docs`."""

import sys

from melora_bench.cli import main

if __name__ == "__main__":
    sys.exit(main(["docs", *sys.argv[1:]]))
