"""Score a trained run, or a backbone as it is, on MMLU, BBH, DROP or HumanEval (docs/instructeval.md); with -m on several."""

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from melora_bench.progress import setup_logging


@hydra.main(config_path="../configs", config_name="instructeval", version_base="1.3")
def main(cfg: DictConfig) -> None:
    from melora_bench.instructeval.run import score

    setup_logging()
    try:
        score(cfg, HydraConfig.get().runtime.choices)
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
