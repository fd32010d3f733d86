"""What a person sees of a run: a bar on a terminal, plain lines elsewhere, one summary line at the end."""

import logging
import time

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from melora_bench.training.processes import is_main

REFRESH_STEPS = 10  # how often the losses are fetched from the device

log = logging.getLogger(__name__)
console = Console()


def setup_logging() -> None:
    """INFO lines of this package, warnings of the rest, through one console that a progress bar can share."""
    handler = RichHandler(console=console, show_path=False, show_level=False, markup=False, highlighter=None)
    if not console.is_terminal:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("melora_bench").setLevel(logging.INFO if is_main() else logging.ERROR)


class RunProgress:
    """The progress of one packed run; use as a context manager."""

    def __init__(self, name: str, trainer, rows_per_step: int, quiet: bool) -> None:
        self.name, self.trainer, self.rows_per_step = name, trainer, rows_per_step
        self.live = console.is_terminal and not quiet
        self.quiet = quiet
        columns = ("{task.description}", "epoch {task.fields[epoch]}", "step {task.completed}/{task.total}",
                   "{task.fields[state]}", "{task.fields[speed]:.0f} rows/s")  # fmt: skip
        text = [TextColumn(column, markup=False) for column in columns]
        self.bar = Progress(text[0], BarColumn(bar_width=20), *text[1:], TimeRemainingColumn(), console=console)
        self.started, self.first_step, self.scores = time.perf_counter(), trainer.step, ""
        fields = {"epoch": self._epoch(trainer.step), "state": "", "speed": 0.0}
        self.task = self.bar.add_task(name, total=trainer.schedule.total, completed=trainer.step, **fields)

    def __enter__(self) -> "RunProgress":
        if self.live:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.bar.stop()

    def on_step(self, step: int, losses) -> None:
        """Called after every optimizer step with the running sums of the losses (R,)."""
        if self.live and step % REFRESH_STEPS == 0:
            self.bar.update(self.task, completed=step, **self._fields(step, losses))

    def on_round(self, metric: str) -> None:
        """Called after every evaluation."""
        last = [history[-1] if history else None for history in self.trainer.history]
        self.scores = (
            metric + " " + " ".join(f"{entry['metrics'][metric]:.4f}" if entry else "failed" for entry in last)
        )
        losses = " ".join(f"{entry['train_loss']:.4f}" if entry else "-" for entry in last)
        if not self.live and not self.quiet:
            step = self.trainer.step
            log.info("%s  epoch %s  loss %s  %s  %.0f rows/s", self.name, self._epoch(step), losses, self.scores,
                     self._speed(step))  # fmt: skip

    def _epoch(self, step: int) -> str:
        schedule = self.trainer.schedule
        return f"{schedule.epoch(step):.3g}/{schedule.epoch(schedule.total):.3g}"

    def _speed(self, step: int) -> float:
        return (step - self.first_step) * self.rows_per_step / (time.perf_counter() - self.started)

    def _fields(self, step: int, losses) -> dict:
        steps = step - self.trainer.step
        mean = " ".join(f"{value / max(1, steps):.3f}" for value in losses.tolist())
        return {"epoch": self._epoch(step), "state": f"loss {mean}  {self.scores}", "speed": self._speed(step)}
