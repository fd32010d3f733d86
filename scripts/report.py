"""Write report.html from the records of a results folder: `melora-bench report`."""

import sys

from melora_bench.cli import main

if __name__ == "__main__":
    sys.exit(main(["report", *sys.argv[1:]]))
