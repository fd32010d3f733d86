"""Train one point, or with -m or table=NAME a grid of points. See README.md."""

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from melora_bench.progress import setup_logging


@hydra.main(config_path="../configs", config_name="train", version_base="1.3")
def main(cfg: DictConfig) -> None:
    from melora_bench.run import run  # imports torch: --help and a misspelt key answer without it

    setup_logging()
    run(cfg, HydraConfig.get().runtime.choices)


if __name__ == "__main__":
    main()
