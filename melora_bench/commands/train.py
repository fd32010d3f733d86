"""Train one point, or with -m or table=NAME a grid of points.

    melora-bench train method=melora method.n=4 task=tweets 'seeds=[0,1,2]'
    melora-bench train -m table=audit

Every key of configs/train.yaml may be set. What is recorded is skipped; a run that was ended goes on after its last
finished epoch. Exit codes: 0 done, 1 a point failed, 2 no such setting, 3 the table has no point of that selection, 130
Ctrl-C.
"""

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from omegaconf import DictConfig

from melora_bench.commands.hydra_task import run_hydra
from melora_bench.files import CONFIGS
from melora_bench.grids.tables import composed_table
from melora_bench.grids.trials import own_experiment
from melora_bench.instructeval.config import misnamed
from melora_bench.training.progress import setup_logging

REMEDY = "the same command goes on from the last checkpoint"


@hydra.main(config_path=str(CONFIGS), config_name="train", version_base="1.3")
def train(cfg: DictConfig) -> None:
    from melora_bench.training.run import RunError, run  # imports torch: --help and a misspelt key answer without it

    setup_logging()
    hydra_config = HydraConfig.get()
    if cfg.get("table") and hydra_config.mode == RunMode.RUN:  # one point of a table; a grid's sweeper has seen to it
        table = composed_table(cfg, hydra_config.runtime.choices["table"])
        cfg.experiment = own_experiment(table, hydra_config.overrides.task)
    try:
        run(cfg, hydra_config.runtime.choices)
    except RunError:
        if hydra_config.mode == RunMode.RUN:
            sys.exit(1)  # the one line is logged; Hydra would say it again
        raise


def main(arguments: list[str]) -> int:
    # Hydra looks for plugins once: this process may have composed a config before `grids` put the sweeper on the path.
    from hydra_plugins.melora_bench_grid import GridSweeper

    Plugins.instance().register(GridSweeper)
    return run_hydra(train, arguments, __doc__, misnamed(arguments, "train"))
