"""Write report.html, one self-contained page, from the records of a results folder.

    melora-bench report
    melora-bench report results_dir=DIR

Without a folder: of the committed results.
"""

from melora_bench.commands.arguments import settings
from melora_bench.commands.running import command


@command
def main(arguments: list[str]) -> int:
    folder = settings(arguments, {"results_dir": None}, first="results_dir")["results_dir"]
    from melora_bench.results.report import write

    print(f"wrote {write(folder)}")
    return 0
