"""What a grid will cost before it runs: points done and missing, steps, tokens, and hours on this device from a probe."""

import contextlib
import itertools
import time
from dataclasses import dataclass

import torch

from melora_bench.grid import points
from melora_bench.points import Point, compose_run
from melora_bench.run import PackedRun
from melora_bench.tables import load_grid

PROBE_STEPS, WARM_UP = 20, 3  # optimizer steps measured, after those that are not
FORWARD_SHARE = 1 / 3  # what evaluating a token costs of training on it: no backward pass


@dataclass(kw_only=True)
class Cost:
    """One point: what its missing seeds need."""

    job: list[str]
    point: Point
    missing: list[int]
    steps: int = 0
    tokens: int = 0  # of all missing seeds, in training
    evaluated: int = 0  # the same in evaluation
    hours: float = 0.0
    problem: str = ""  # why the cost cannot be known: data or a backbone that is not here, say


class _Enough(Exception):
    pass


def plan(table: str, overrides: list[str]) -> list[Cost]:
    """The cost of every point of a table. A probe of each method's first missing point gives tokens per second.

    Raises ValueError for a grid without such points, or for values that no run can have.
    """
    costs: list[Cost] = []
    speed: dict[tuple, float] = {}  # by method and number of seeds side by side
    for job in points(load_grid(table)["table"], overrides):
        point = Point.of(*compose_run([f"table={table}", *job]))
        cost = Cost(job=job, point=point, missing=[s for s in point.config["seeds"] if not point.record(s)])
        costs.append(cost)
        try:
            _measure(cost, speed)
        except ValueError as error:
            cost.problem = " ".join(str(error).split())
    return costs


def _measure(cost: Cost, speed: dict[tuple, float]) -> None:
    packs, epochs = cost.point.packs(cost.missing), cost.point.config["epochs"]
    if not packs:
        return
    run = PackedRun(cost.point, packs[0])
    evaluated = sum(len(part.ids) for part in run.task.evaluation.values())
    cost.steps = len(packs) * epochs * run.batches.steps_per_epoch
    cost.tokens = len(cost.missing) * epochs * len(run.task.train.ids)
    cost.evaluated = len(cost.missing) * epochs * evaluated
    key = (cost.point.choices["method"], len(packs[0]))
    if key not in speed:
        speed[key] = probe(run)
    cost.hours = (cost.tokens + FORWARD_SHARE * cost.evaluated) / speed[key] / 3600


def probe(run: PackedRun) -> float:
    """Training tokens per second of all its seeds together, from its first steps; nothing is written."""
    steps = min(WARM_UP + PROBE_STEPS, run.batches.steps_per_epoch)
    first = min(WARM_UP, steps - 1)
    batches = itertools.islice(run.batches.epoch(0), steps)
    tokens = [sum(int(batch["attention_mask"].sum()) for batch in parts) for parts in batches]
    clock = []

    def watch(step: int, losses: torch.Tensor) -> None:
        if step in (first, steps):
            losses.tolist()  # waits for the device
            clock.append(time.perf_counter())
        if step == steps:
            raise _Enough

    clock += [time.perf_counter()] * (first == 0)
    with contextlib.suppress(_Enough):
        run.trainer.train_epoch(watch)
    return sum(tokens[first:]) * run.accelerator.num_processes / (clock[1] - clock[0])
