"""Regenerate tables from the records: `python scripts/tables.py [NAME ...] [results_dir=DIR] [experiment=NAME]`.

Without a name: all papers' tables. The options are those that the sweep was given, also as --results DIR and
--experiment NAME. Its other overrides say whether it was a trial, whose records have an experiment of their own.
"""

import sys

from melora_bench.grids.commands import for_tables
from melora_bench.results.tables import regenerate
from melora_bench.training.processes import interruptible


def written(name: str, results: str | None, experiment: str | None, named: bool) -> list[str]:
    csv, markdown, tex = regenerate(name, results, experiment)
    return [*[markdown.read_text()] * named, f"wrote {csv}, {markdown.name} and {tex.name}"]


def main(given: list[str] | None = None) -> int:
    return for_tables(__doc__, given, written)


if __name__ == "__main__":
    with interruptible():
        sys.exit(main())
