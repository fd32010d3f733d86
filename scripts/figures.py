"""Draw every figure that the records allow: `python scripts/figures.py [TABLE ...] [results_dir=DIR] [experiment=NAME]`.

Options and overrides are those of scripts/tables.py.
"""

import sys

from melora_bench.grids.commands import for_tables
from melora_bench.results.figures import draw
from melora_bench.training.processes import interruptible


def written(name: str, results: str | None, experiment: str | None, named: bool) -> list[str]:
    return [f"wrote {path}" for path in draw(name, results, experiment)]


def main(given: list[str] | None = None) -> int:
    return for_tables(__doc__, given, written)


if __name__ == "__main__":
    with interruptible():
        sys.exit(main())
