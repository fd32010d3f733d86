"""Score a trained run, or a backbone as it is, on MMLU, BBH, DROP or HumanEval; with -m on several.

    melora-bench score benchmark=mmlu run=mine
    melora-bench score -m benchmark=mmlu,bbh run=mine limit=108

Every key of configs/instructeval.yaml may be set; docs/instructeval.md says what they mean.
"""

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from melora_bench.commands.hydra_task import run_hydra
from melora_bench.files import CONFIGS, reason
from melora_bench.instructeval.config import misnamed
from melora_bench.training.progress import setup_logging

REMEDY = "the same command goes on after the last finished subject"


@hydra.main(config_path=str(CONFIGS), config_name="instructeval", version_base="1.3")
def score(cfg: DictConfig) -> None:
    from melora_bench.instructeval.score import score as score_models
    from melora_bench.training.run import RunError

    setup_logging()
    line = None
    try:
        score_models(cfg, HydraConfig.get().runtime.choices)
    except ValueError as error:
        line = f"error: {error}"
    except OSError as error:
        line = f"error: {reason(error)}; once that is mended, the same command goes on"
    # Outside the except block: with -m Hydra keeps the exception, which must not keep the model alive.
    if line and HydraConfig.get().mode == RunMode.RUN:
        sys.exit(line)
    if line:
        print(line, file=sys.stderr)
        raise RunError(line)  # after the other benchmarks


def main(arguments: list[str]) -> int:
    return run_hydra(score, arguments, __doc__, misnamed(arguments, "score"))
