"""A Hydra sweeper for tables: their grids are unions of products, which Hydra's own sweeper cannot express.

Hydra finds plugins in the namespace package `hydra_plugins`; melora_bench/grids/__init__.py puts this part of it on the
path.
"""

import sys

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.errors import CompactHydraException

from melora_bench.grids import NO_POINT
from melora_bench.grids.jobs import jobs
from melora_bench.grids.tables import composed_table
from melora_bench.grids.trials import own_experiment
from melora_bench.training import progress


class GridSweeper(BasicSweeper):
    def sweep(self, arguments: list[str]) -> list:
        """Launch every point of `table.rows`, narrowed by the command line; a failed point does not stop the others."""
        try:
            table = composed_table(self.config, self.config.hydra.runtime.choices["table"])
        except ValueError as error:
            sys.exit(f"error: {error}")
        try:
            points = jobs(table, arguments)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(NO_POINT)
        name = own_experiment(table, arguments)
        progress.GRID = progress.Grid(total=len(points))
        try:
            results = self.launcher.launch([[*point, f"experiment={name}"] for point in points], initial_job_idx=0)
        finally:
            progress.GRID = None
        failed = [result for result in results if result.status.name == "FAILED"]
        if failed:
            raise CompactHydraException(
                f"{len(failed)} of {len(points)} points failed: their lines are above, and `make status` lists them; "
                "the same command runs them again"
            )
        return results
