"""Which of a run's processes this one is, and how a command ends when somebody interrupts it."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")
INTERRUPTED = 130  # what a shell reports of a command that Ctrl-C ended


def count() -> int:
    """How many processes the launcher started for one run. Without a launcher:
    1, whatever RANK an earlier one left behind."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def is_main() -> bool:
    """Whether this process is the one that claims, writes and prints."""
    return count() == 1 or int(os.environ.get("RANK") or 0) == 0


def agreed(value: T) -> T:
    """The main process's value, in every process: files may appear between one process's look and another's."""
    if count() == 1:
        return value
    import torch
    from accelerate.state import PartialState
    from accelerate.utils import broadcast_object_list

    PartialState(cpu=not torch.cuda.is_available())
    return broadcast_object_list([value])[0]


@contextlib.contextmanager
def interruptible(remedy: str = "") -> Iterator[None]:
    """End the command with one line and code 130 when Ctrl-C is pressed in the body."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"interrupted{remedy and f': {remedy}'}", file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED)
