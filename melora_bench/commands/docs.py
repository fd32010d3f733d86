"""Write docs/methods.md, the facts of every method, counted and measured now, with what we found; and docs/tables.md.

    melora-bench docs
    melora-bench docs to=DIR

Without a folder: docs/ of the checkout.
"""

from pathlib import Path

from melora_bench.commands.arguments import settings
from melora_bench.commands.running import command
from melora_bench.files import ROOT, write_text
from melora_bench.grids import tables_page


@command
def main(arguments: list[str]) -> int:
    from melora_bench.results import methods_page  # imports torch

    folder = Path(settings(arguments, {"to": None})["to"] or ROOT / "docs")
    for name, page in (("methods", methods_page), ("tables", tables_page)):
        print(f"wrote {write_text(folder / f'{name}.md', page.document())}")
    return 0
