"""Draw every figure that the records allow: `melora-bench figures`."""

import sys

from melora_bench.cli import main

if __name__ == "__main__":
    sys.exit(main(["figures", *sys.argv[1:]]))
