"""Write docs/methods.md: the facts of every method, counted and measured now, and what we found.

    melora-bench docs
    melora-bench docs to=DIR

Without a folder: docs/ of the checkout.
"""

from pathlib import Path

from melora_bench.commands.arguments import settings
from melora_bench.commands.running import command
from melora_bench.files import ROOT, options, write_text


@command
def main(arguments: list[str]) -> int:
    folder = settings(arguments, {"to": None})["to"]
    print(f"wrote {write_text(Path(folder or ROOT / 'docs') / 'methods.md', document())}")
    return 0


def document() -> str:
    """The page as Markdown."""
    from melora_bench.commands.findings import findings  # imports torch
    from melora_bench.commands.method_facts import COLUMNS, SHOWN, row

    names = sorted(options("method"))
    found = [(text, *test.split("::")) for text, test in findings()]
    lines = [
        "# Methods",
        "",
        f"Written by `make docs`. Numbers are counted or measured when it runs, for one adapted matrix of {SHOWN[0]} x "
        f"{SHOWN[1]} (RoBERTa-base's query) and the values of configs/method/. x is the layer's input, W its frozen weight, "
        "R the seeds trained side by side. Rank: the bound, then that of an update with random values. Cost: multiply-adds "
        "per token in training, those of W aside.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + " --- |" * len(COLUMNS),
        *map(row, names),
        "",
        "## What we found",
        "",
        *(f"* {text} Test: [`{test}`](../tests/methods/{file})." for text, file, test in found),
    ]
    return "\n".join(lines) + "\n"
