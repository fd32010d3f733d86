"""A Hydra sweeper for tables: their grids are unions of products, which Hydra's own sweeper cannot express.

Hydra finds plugins in the namespace package `hydra_plugins`; melora_bench/grids/__init__.py puts this part of it on the path.
"""

import sys

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.errors import CompactHydraException
from omegaconf import OmegaConf

from melora_bench.grids import NO_POINT
from melora_bench.grids.grid import own_experiment, points


class GridSweeper(BasicSweeper):
    def sweep(self, arguments: list[str]) -> list:
        """Launch every point of `table.rows`, narrowed by the command line; a failed point does not stop the others."""
        grid = OmegaConf.to_container(OmegaConf.masked_copy(self.config, ["table", "experiment"]))
        try:
            jobs = points(grid["table"], arguments)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(NO_POINT)
        name = own_experiment(grid, arguments)
        jobs = [[*job, f"experiment={name}"] for job in jobs]
        results = self.launcher.launch(jobs, initial_job_idx=0)
        failed = [result for result in results if result.status.name == "FAILED"]
        if failed:
            raise CompactHydraException(f"{len(failed)} of {len(jobs)} points failed: their lines are above, and `make status` "
                                        "lists them; the same command runs them again")  # fmt: skip
        return results
