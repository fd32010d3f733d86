"""Running one point: which of its seeds are still to be done, training them, one record for each."""

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from melora_bench.training import progress
from melora_bench.training.inputs import refusals
from melora_bench.training.packed import train
from melora_bench.training.points import Point
from melora_bench.training.processes import agreed, count, is_main
from melora_bench.training.reporting import Failures, RunError
from melora_bench.training.waves import train_in_waves

__all__ = ["RunError", "run"]

log = logging.getLogger(__name__)


def run(cfg: DictConfig, choices: dict) -> list[Path]:
    """Train the seeds of one point that have no record yet; returns the records written.

    Raises RunError, once the other seeds are done, for seeds that failed or whose record is that of another run. Each
    has its one line, logged, and where it failed in training also in error.txt among its outputs.
    """
    failures, paths = Failures(), []
    progress.begin_point()
    try:
        point = failures.point = Point.of(cfg, choices)
        with _claimed(point) as (todo, may_train):
            _report_recorded(point, todo, failures)
            if todo and not may_train:
                log.info(
                    "busy  %s  another process holds it: seeds %s are left to it, or to a later start",
                    point.label,
                    todo,
                )
            elif todo:
                log.info("train  %s  seeds %s  %s", point.label, todo, point.recipe)
                paths = _train(point, todo, failures)
    except Exception as error:
        failures.add(error)
    # Outside the except block: a sweep keeps the exception, which must not keep the failed run's model alive.
    failures.end()
    return paths


@contextlib.contextmanager
def _claimed(point: Point) -> Iterator[tuple[list[int], bool]]:
    """The seeds without a record, and whether this process may train them."""
    with contextlib.ExitStack() as stack:
        todo, may_train = agreed(point.todo()), False
        if todo:  # another user's finished point is skipped without that user's lock
            may_train = agreed(is_main() and stack.enter_context(point.claimed()))
            todo = agreed(point.todo())
        elif is_main() and point.leftovers():
            with contextlib.suppress(ValueError), point.claimed(wait=0):  # its holder removes the leftovers
                pass
        yield todo, may_train


def _report_recorded(point: Point, todo: list[int], failures: Failures) -> None:
    """Say which seeds are recorded; a record of another run than the point would make now is a failure."""
    done = [seed for seed in point.config.seeds if seed not in todo]
    if not done or not is_main():
        return
    refused = refusals(point, done)
    for why in refused.values():
        failures.add(ValueError(why))
    if kept := [seed for seed in done if seed not in refused]:
        log.info("skip  %s  seeds %s are recorded: %s", point.label, kept, point.record(kept[0]))


def _train(point: Point, todo: list[int], failures: Failures) -> list[Path]:
    def halved(seeds: list[int], packs: list[list[int]]) -> None:
        point.checkpoint(seeds).unlink(missing_ok=True)
        log.warning(
            "waves  %s  %d seeds side by side are too many for the device's memory: %s",
            point.label,
            len(seeds),
            " then ".join(map(str, packs)),
        )

    started = time.perf_counter()
    paths = train_in_waves(
        point.packs(todo),
        lambda seeds: train(point, seeds),
        may_halve=lambda seeds: count() == 1 and not point.checkpoint(seeds).exists(),
        on_halved=halved,
        on_error=failures.add,
    )
    progress.end_point(time.perf_counter() - started)
    return paths
