"""Draw every figure that the records allow, under <results_dir>/figures.

    melora-bench figures
    melora-bench figures mplora_table2 results_dir=DIR experiment=NAME

Names and settings are those of `melora-bench tables`.
"""

from melora_bench.commands.running import command
from melora_bench.commands.tables import print_for_tables


@command
def main(arguments: list[str]) -> int:
    return print_for_tables(arguments, _drawn)


def _drawn(name: str, results: str | None, experiment: str | None, named: bool) -> list[str]:
    from melora_bench.results.figures import draw  # imports matplotlib

    return [f"wrote {path}" for path in draw(name, results, experiment)]
