"""What a grid will cost before it runs: points done and missing, steps, tokens,
and hours on this device from a probe."""

import time
from dataclasses import dataclass

import torch

from melora_bench.external.fields import build as build_group
from melora_bench.files import sha256_json
from melora_bench.grids.jobs import jobs
from melora_bench.grids.tables import load_table
from melora_bench.grids.trials import experiment
from melora_bench.tasks.base import Task
from melora_bench.tasks.batches import count_tokens
from melora_bench.training.build import LIMITS, Parts, build, load_task
from melora_bench.training.configs import compose_run
from melora_bench.training.points import Point
from melora_bench.training.schedule import Schedule

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


@dataclass(frozen=True)
class Size:
    """What one epoch of a task reads."""

    rows: int
    tokens: int
    evaluated: int  # tokens

    @classmethod
    def of(cls, task: Task) -> "Size":
        evaluated = sum(len(split.ids) for split in task.evaluation.values())
        return cls(len(task.train.labels), len(task.train.ids), evaluated)


def plan(table: str, overrides: list[str]) -> list[Cost]:
    """The cost of every point of a table. A probe of each method's first missing point gives tokens per second.

    Raises ValueError for a grid without such points, or for values that no run can have.
    """
    costs: list[Cost] = []
    speed: dict[tuple, float] = {}  # by method, backbone and number of seeds side by side
    sizes: dict[str, Size] = {}  # by what decides which rows are read, and how
    grid = load_table(table)
    name, _ = experiment(grid, overrides)
    for job in jobs(grid, overrides):
        point = Point.of(*compose_run([f"table={table}", *job, f"experiment={name}"]))
        cost = Cost(job=job, point=point, missing=point.todo())
        costs.append(cost)
        try:
            _measure(cost, sizes, speed)
        except torch.OutOfMemoryError:
            cost.problem = (
                f"batch_size={point.config.batch_size} of {len(cost.missing)} seeds does not fit the device's memory: "
                "a run trains them in waves; or give fewer seeds, or raise accumulation"
            )
        except ValueError as error:
            cost.problem = " ".join(str(error).split())
    return costs


def _measure(cost: Cost, sizes: dict[str, Size], speed: dict[tuple, float]) -> None:
    config, packs = cost.point.config, cost.point.packs(cost.missing)
    if not packs:
        return
    rows = sha256_json([getattr(config, key) for key in ("task", "data", "backbone", *LIMITS)])
    if rows not in sizes:
        sizes[rows] = Size.of(load_task(config, build_group(config.backbone, "backbone"))[0])
    size = sizes[rows]
    schedule = Schedule.of(config, size.rows)
    cost.steps = len(packs) * schedule.total
    cost.tokens = round(len(cost.missing) * schedule.epoch(schedule.total) * size.tokens)
    cost.evaluated = len(cost.missing) * schedule.rounds * size.evaluated
    key = (*(cost.point.choices[group] for group in ("method", "backbone")), len(packs[0]))
    if key not in speed:
        speed[key] = probe(build(cost.point, packs[0]))
    cost.hours = (cost.tokens + FORWARD_SHARE * cost.evaluated) / speed[key] / 3600


def probe(parts: Parts) -> float:
    """Training tokens per second of all its seeds together, from its first steps; nothing is written."""
    trainer = parts.trainer
    steps = min(WARM_UP + PROBE_STEPS, trainer.schedule.round, trainer.schedule.total)
    warm_up = min(WARM_UP, steps - 1)
    tokens = [sum(map(count_tokens, micro_batches)) for micro_batches in trainer.batches.steps(warm_up, steps)]
    trainer.train_steps(warm_up).tolist()  # waits for the device
    started = time.perf_counter()
    trainer.train_steps(steps).tolist()
    return sum(tokens) * parts.accelerator.num_processes / (time.perf_counter() - started)
