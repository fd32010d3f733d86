"""Regenerate tables from the records: `melora-bench tables`."""

import sys

from melora_bench.cli import main

if __name__ == "__main__":
    sys.exit(main(["tables", *sys.argv[1:]]))
