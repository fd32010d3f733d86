"""What a person sees of work that takes long: a few lines that change in place on a terminal, plain lines elsewhere."""

import contextlib
import logging
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from melora_bench.training.processes import is_main

LINE_SECONDS = 60  # between two lines where there is no terminal
BAR = 20  # characters

log = logging.getLogger(__name__)
console = Console()


class _ConsoleHandler(logging.Handler):
    """Lines above what changes in place, never folded, so that a path can be copied."""

    def emit(self, record: logging.LogRecord) -> None:
        console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)


def setup_logging() -> None:
    """INFO lines of this package, warnings of the rest: each with its time of day."""
    handler: logging.Handler = _ConsoleHandler() if console.is_terminal else logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("melora_bench").setLevel(logging.INFO if is_main() else logging.ERROR)


@dataclass(kw_only=True)
class Grid:
    """The points that one process runs one after another; whoever runs them says so in GRID."""

    total: int
    number: int = 0  # of the point at work, from 1 on
    seconds: list[float] = field(default_factory=list)  # what each point took that was trained

    def line(self, passed: float, left: float | None) -> str:
        """The place of the point at work, and the time left for all, when it has taken `passed` seconds and takes
        `left` more: the rest is taken to need what the points so far did on the average."""
        place = f"point {self.number} of {self.total}"
        if left is None:
            return place
        mean = statistics.fmean([*self.seconds, passed + left])
        return f"{place}, about {clock(left + (self.total - self.number) * mean)} left for all"


GRID: Grid | None = None


def begin_point() -> None:
    """The work on the next point of GRID begins; outside a grid, nothing."""
    if GRID:
        GRID.number += 1


def end_point(seconds: float) -> None:
    """The training of GRID's point has taken so long."""
    if GRID:
        GRID.seconds.append(seconds)


class Progress:
    """Units of work done of a total, as a context manager.

    On a terminal: the grid's place, the title with a bar, and `line(left)` below, `left` being "4:40 left" or, as long
    as nothing can be said, empty. Elsewhere `line(left)` behind the title, a line a minute at most and one at the end.
    """

    def __init__(
        self, title: str, total: int, line: Callable[[str], str], *, done: int = 0, quiet: bool = False
    ) -> None:
        self.title, self.total, self.line = title, total, line
        self.done = self.first = done
        self.quiet, self.note = quiet, ""  # the note is for `line` to tell
        self.started = self.last_line = time.perf_counter()
        self.live: Live | None = None

    def __enter__(self) -> "Progress":
        if console.is_terminal and self.total and not self.quiet:
            self.live = Live(console=console, get_renderable=self._shown, transient=True)
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def update(self, done: int) -> None:
        """So many units are done by now."""
        self.done = done
        now = time.perf_counter()
        if now - self.last_line >= LINE_SECONDS or done == self.total:
            self.say(f"{self.title}  {self.line(self._left(now))}", now)

    def advance(self, count: int) -> None:
        """So many more units are done."""
        self.update(self.done + count)

    def say(self, text: str, now: float | None = None) -> None:
        """Log a line where nothing changes in place; the next of the lines a minute comes a minute later."""
        self.last_line = time.perf_counter() if now is None else now
        if not self.quiet and not console.is_terminal:
            log.info("%s", text)

    def speed(self) -> float:
        """Units per second since this start."""
        return (self.done - self.first) / max(time.perf_counter() - self.started, 1e-9)

    def _seconds_left(self, now: float) -> float | None:
        if self.done == self.first:
            return None
        return (now - self.started) * (self.total - self.done) / (self.done - self.first)

    def _left(self, now: float) -> str:
        seconds = self._seconds_left(now)
        return "" if seconds is None else f"{clock(seconds)} left"

    def _shown(self) -> Group:
        now = time.perf_counter()
        full = BAR * self.done // max(self.total, 1)
        bar = Text.assemble((self.title, "bold"), "  ", ("━" * full, "green"), ("━" * (BAR - full), "dim"))
        lines = [bar, Text(self.line(self._left(now)))]
        if GRID:
            lines.insert(0, Text(GRID.line(now - self.started, self._seconds_left(now))))
        for text in lines:
            text.no_wrap, text.overflow = True, "ellipsis"
        return Group(*lines)


@contextlib.contextmanager
def waiting(text: str) -> Iterator[None]:
    """On a terminal, say what is waited for as long as the body takes."""
    with console.status(text) if console.is_terminal and is_main() else contextlib.nullcontext():
        yield


def clock(seconds: float) -> str:
    """4:40, or 1:04:40 from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
