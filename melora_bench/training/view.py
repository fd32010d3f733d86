"""What a person sees of one packed run while it trains."""

import statistics

from torch import Tensor

from melora_bench.training.points import Point
from melora_bench.training.progress import Progress
from melora_bench.training.trainer import Trainer


class RunView:
    """The progress of one packed run; use as a context manager."""

    def __init__(self, point: Point, trainer: Trainer, *, quiet: bool) -> None:
        self.point, self.trainer = point, trainer
        self.rows_per_step = point.config.batch_size * trainer.replicas
        total = trainer.schedule.total
        self.progress = Progress(point.label, total, self._line, done=trainer.step, quiet=quiet)

    def __enter__(self) -> "RunView":
        self.progress.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.__exit__(*error)

    def on_step(self, step: int, losses: Tensor) -> None:
        """Called after every optimizer step. The losses are left on the device: to fetch them would wait for it."""
        if step < self.progress.total:  # the last one is told of after its evaluation
            self.progress.update(step)

    def on_round(self) -> None:
        """Called after every evaluation: each seed's loss and score in a line, where there is no terminal."""
        self.progress.done = self.trainer.step
        metric = self.trainer.task.metric
        last = [history[-1] if history else None for history in self.trainer.history]
        losses = " ".join(f"{entry['train_loss']:.4f}" if entry else "-" for entry in last)
        scores = " ".join(f"{entry['metrics'][metric]:.4f}" if entry else "failed" for entry in last)
        self.progress.say(
            f"{self.point.label}  epoch {self._epoch()}  loss {losses}  {metric} {scores}  {self._speed():.0f} rows/s"
        )

    def _line(self, left: str) -> str:
        done, total = self.progress.done, self.progress.total
        parts = [f"epoch {self._epoch()}", f"step {done}/{total}", f"{self._speed():.0f} rows/s", self._scores(), left]
        return "  ".join(filter(None, parts))

    def _scores(self) -> str:
        """The metric after the last evaluation: its mean over the seeds, and their sample standard deviation."""
        metric = self.trainer.task.metric
        values = [history[-1]["metrics"][metric] for history in self.trainer.history if history]
        if not values:
            return ""
        spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        return f"{metric} {statistics.fmean(values):.4f}{spread}"

    def _epoch(self) -> str:
        schedule = self.trainer.schedule
        return f"{schedule.epoch(self.progress.done):.3g}/{schedule.epoch(schedule.total):.3g}"

    def _speed(self) -> float:
        return self.progress.speed() * self.rows_per_step
