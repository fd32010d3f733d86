"""How a run that fails is reported: one line, logged; the same and where it failed in error.txt;
an exit code other than 0."""

import contextlib
import logging
import os
import traceback
from collections.abc import Sequence

import torch
from hydra.errors import CompactHydraException, InstantiationException

from melora_bench.external.shapes import printable
from melora_bench.files import reason, write_text
from melora_bench.training.points import Point
from melora_bench.training.processes import count, is_main

log = logging.getLogger(__name__)


class RunError(CompactHydraException):
    """A run that cannot go on, in one line: Hydra prints it without a traceback and exits with a code other than 0."""


class Failures:
    """The errors of one run, whose point is known once its config has been read."""

    def __init__(self) -> None:
        self.point: Point | None = None
        self.lines: list[str] = []

    def add(self, error: Exception, seeds: Sequence[int] = ()) -> None:
        """Log the one line of an error, and write it to error.txt of those seeds that have no record."""
        if self.point and isinstance(error, torch.OutOfMemoryError):
            error = out_of_memory(self.point)
        line = one_line(error)
        log.error("error: %s", line)
        self.lines.append(line)
        if self.point and is_main():
            with contextlib.suppress(OSError):  # the disk may be what failed
                for seed in seeds:
                    if not self.point.record(seed):
                        text = f"{line}\n\n{traceback.format_exc()}"
                        write_text(self.point.output(seed) / "error.txt", text)

    def end(self) -> None:
        """Raises RunError with the first line, if there was an error; one of several processes ends at once."""
        if self.lines and count() > 1:
            os._exit(1)  # the other processes wait for this one: their launcher ends them
        if self.lines:
            raise RunError(f"error: {self.lines[0]}")


def out_of_memory(point: Point) -> ValueError:
    """What a person can do about a device whose memory does not hold a run."""
    config = point.config
    return ValueError(
        f"the device is out of memory at batch_size={config.batch_size}, eval_batch_size={config.eval_batch_size}: in "
        "training raise accumulation, in evaluation lower eval_batch_size, or give fewer seeds; the next start goes on "
        "from the last evaluation's checkpoint, if there was one"
    )


def one_line(error: BaseException) -> str:
    """An error in one line; the name of its class tells of an error that nobody foresaw."""
    if isinstance(error, OSError):
        return f"{reason(error)}; once that is mended, the same command goes on"
    text = printable(" ".join(str(error).split()))
    return text if isinstance(error, ValueError | InstantiationException) else f"{type(error).__name__}: {text}"
