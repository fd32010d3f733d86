"""What a person sees of a score that is being made."""

import logging
import time

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from melora_bench.training.progress import console

log = logging.getLogger(__name__)
LINE_SECONDS = 60  # between two progress lines where there is no terminal


class EvalProgress:
    """Questions done and time left: a bar on a terminal, a line a minute elsewhere; use as a context manager."""

    def __init__(self, label: str, total: int) -> None:
        self.label, self.total, self.done, self.subject = label, total, 0, ""
        self.started = self.last_line = time.perf_counter()
        columns = ("{task.description}", "{task.completed:.0f}/{task.total:.0f}", "{task.fields[subject]}")
        text = [TextColumn(column, markup=False) for column in columns]
        self.bar = Progress(text[0], BarColumn(bar_width=20), *text[1:], TimeRemainingColumn(), console=console)
        self.task = self.bar.add_task(label, total=total, subject="")

    def __enter__(self) -> "EvalProgress":
        if console.is_terminal and self.total:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def on_batch(self, count: int) -> None:
        """Called after every batch with the number of questions in it."""
        self.done += count
        self.bar.update(self.task, completed=self.done, subject=self.subject)
        now = time.perf_counter()
        if not console.is_terminal and (now - self.last_line >= LINE_SECONDS or self.done == self.total):
            self.last_line = now
            left = (now - self.started) * (self.total - self.done) / self.done
            minutes, seconds = divmod(round(left), 60)
            counts = f"{self.done}/{self.total} questions, in {self.subject}"
            log.info("%s  %s, %d:%02d left", self.label, counts, minutes, seconds)
