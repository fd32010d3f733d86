"""Train one point, or with -m or table=NAME a grid of points. See README.md."""

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from melora_bench.files import home
from melora_bench.grids.tables import composed_table
from melora_bench.grids.trials import own_experiment
from melora_bench.instructeval.config import misnamed
from melora_bench.training.processes import interruptible
from melora_bench.training.progress import setup_logging


@hydra.main(config_path="../configs", config_name="train", version_base="1.3")
def main(cfg: DictConfig) -> None:
    from melora_bench.training.run import RunError, run  # imports torch: --help and a misspelt key answer without it

    setup_logging()
    hydra_config = HydraConfig.get()
    if cfg.get("table") and hydra_config.mode == RunMode.RUN:  # one point of a table; a grid's sweeper has seen to it
        try:
            table = composed_table(cfg, hydra_config.runtime.choices["table"])
        except ValueError as error:
            sys.exit(f"error: {error}")
        cfg.experiment = own_experiment(table, hydra_config.overrides.task)
    try:
        run(cfg, hydra_config.runtime.choices)
    except RunError:
        if hydra_config.mode == RunMode.RUN:
            sys.exit(1)  # the one line is logged; Hydra would say it again
        raise


if __name__ == "__main__":
    sys.argv[1:] = map(home, sys.argv[1:])
    with interruptible("the same command goes on from the last checkpoint"):
        if line := misnamed(sys.argv[1:], "train"):
            sys.exit(f"error: {line}")
        main()
