"""Score a trained run, or a backbone as it is: `melora-bench score`."""

import sys

from melora_bench.cli import main

if __name__ == "__main__":
    sys.exit(main(["score", *sys.argv[1:]]))
