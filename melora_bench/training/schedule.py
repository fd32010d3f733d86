"""When a run ends and when it is evaluated, counted in optimizer steps."""

import math
from dataclasses import dataclass

from melora_bench.training.configs import RunConfig


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A run's steps. A round is what is trained between two evaluations: an epoch, or `eval_steps` steps."""

    steps_per_epoch: int
    total: int
    round: int
    warmup: int  # steps of linear rise before the linear decay to 0

    @classmethod
    def of(cls, config: RunConfig, rows: int) -> "Schedule":
        """The steps of a run over `rows` training rows."""
        steps_per_epoch = math.ceil(rows / config.batch_size)
        total = config.epochs * steps_per_epoch
        total = min(total, config.max_steps or total)
        warmup = math.ceil(config.warmup_ratio * total) if config.warmup_steps is None else config.warmup_steps
        return cls(
            steps_per_epoch=steps_per_epoch, total=total, round=config.eval_steps or steps_per_epoch, warmup=warmup
        )

    @property
    def rounds(self) -> int:
        return math.ceil(self.total / self.round)

    def epoch(self, step: int) -> int | float:
        """How many epochs the first `step` steps are; whole where they are."""
        done = step / self.steps_per_epoch
        return int(done) if done.is_integer() else round(done, 4)
