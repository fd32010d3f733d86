"""Score a trained run, or a backbone as it is, on MMLU, BBH, DROP or HumanEval (docs/instructeval.md); with -m on several."""

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from melora_bench.files import home, reason
from melora_bench.instructeval.config import misnamed
from melora_bench.training.processes import interruptible
from melora_bench.training.progress import setup_logging


@hydra.main(config_path="../configs", config_name="instructeval", version_base="1.3")
def main(cfg: DictConfig) -> None:
    from melora_bench.instructeval.score import score
    from melora_bench.training.run import RunError

    setup_logging()
    line = None
    try:
        score(cfg, HydraConfig.get().runtime.choices)
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


if __name__ == "__main__":
    sys.argv[1:] = map(home, sys.argv[1:])
    with interruptible("the same command goes on after the last finished subject"):
        if line := misnamed(sys.argv[1:], "score"):
            sys.exit(f"error: {line}")
        main()
