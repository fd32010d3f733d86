"""One point of a grid: a resolved config, its identity, and its place among records and outputs."""

import contextlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from melora_bench.external.fields import MOST
from melora_bench.external.shapes import CONTROL, leaves, names, texts
from melora_bench.files import sweep
from melora_bench.records.identity import check_experiment, config_hash, identity
from melora_bench.training.claims import claimed, held
from melora_bench.training.configs import GROUPS, known_keys

COUNTS = (
    "epochs",
    "batch_size",
    "max_length",
    "accumulation",
    "eval_batch_size",
    "bucket",
    "max_train_rows",
    "max_eval_rows",
    "max_steps",
    "eval_steps",
)
OR_NULL = {"max_train_rows", "max_eval_rows", "max_steps", "eval_steps"}


@dataclass(frozen=True, kw_only=True)
class Point:
    config: dict
    choices: dict  # the options of the config groups
    name: str  # <method>-<hash>: unique among the points of a task
    table: str | None  # whose grid it is composed with, and whose own experiment is called so

    @classmethod
    def of(cls, cfg: DictConfig, choices: dict) -> "Point":
        """Raises ValueError for a value that no run can have."""
        config = OmegaConf.to_container(cfg, resolve=True)
        unknown = set(config) - known_keys()
        if unknown:
            raise ValueError(
                f"{min(unknown)} is no key of configs/train.yaml: it has {', '.join(sorted(known_keys()))}"
            )
        seeds = config["seeds"]
        if not isinstance(seeds, list) or not seeds or len(set(seeds)) != len(seeds):
            raise ValueError(f"seeds={seeds} must be a list of different numbers, such as [0,1,2]")
        if not all(type(seed) is int and seed >= 0 for seed in seeds):
            raise ValueError(f"seeds={seeds} must be whole numbers from 0 on")
        for key in COUNTS:
            value = config[key]
            if not (type(value) is int and value > 0) and not (value is None and key in OR_NULL):
                raise ValueError(f"{key}={value} must be a positive whole number{', or null' * (key in OR_NULL)}")
        if (steps := config["warmup_steps"]) is not None and not (type(steps) is int and steps >= 0):
            raise ValueError(f"warmup_steps={steps} must be a whole number from 0 on, or null for warmup_ratio")
        for key in ("lr", "max_grad_norm", "head_lr_scale", "weight_decay", "warmup_ratio"):
            value, above = config[key], key in ("lr", "max_grad_norm")
            least = "positive number" if above else "number from 0 on"
            if type(value) not in (int, float) or not (0 <= value <= MOST) or (above and value == 0):
                raise ValueError(f"{key}={value} must be a {least}, at most {MOST:,}")
        if config["warmup_ratio"] > 1:
            raise ValueError(f"warmup_ratio={config['warmup_ratio']} must be a share of all steps, at most 1")
        for key in ("results_dir", "output_dir"):
            if not config[key] or not isinstance(config[key], str):
                raise ValueError(f"{key}={config[key]} must be a folder")
        check_experiment(config["experiment"])
        if config["precision"] not in ("no", "bf16", "fp16"):
            raise ValueError(f"precision={config['precision']!r} is unknown: use no, bf16 or fp16")
        table, choices = choices.get("table"), {group: choices[group] for group in GROUPS}
        for group, choice in choices.items():
            if choice is not None and not names(choice):
                raise ValueError(f"{group}={choice!r} must be a name of letters, digits, '_', '-' and '.'")
        for value in texts(config):
            if CONTROL.search(value.replace("\n", "").replace("\t", "")):
                raise ValueError(f"{value[:60]!r} holds control characters, which no record may have")
        for key, value in leaves(config):
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{key}={value} must be a finite number")
        digest = config_hash(identity(config))
        return cls(config=config, choices=choices, name=f"{choices['method']}-{digest[:10]}", table=table)

    @property
    def identity(self) -> dict:
        return identity(self.config)

    @property
    def recipe(self) -> str:
        """Which recipe a run follows, with what it mostly is, in words."""
        config, name = self.config, self.choices["recipe"]
        own = "no paper's" if "/" not in str(name) else f"{name.partition('/')[0]}'s"
        return (f"recipe={name} ({own}): lr {config['lr']:g}, {config['epochs']} epochs, batch {config['batch_size']}, "
                f"backbone {self.choices['backbone']}, data {self.choices['data']}")  # fmt: skip

    def run_id(self, seed: int) -> str:
        return f"{self.config['experiment']}/{self.choices['task']}/{self.name}-s{seed}"

    def record(self, seed: int) -> Path | None:
        """The record of one seed, if it was run in this experiment before."""
        path = Path(self.config["results_dir"]) / "runs" / f"{self.run_id(seed)}.json"
        return path if path.exists() else None

    def todo(self) -> list[int]:
        """The seeds without a record."""
        return [seed for seed in self.config["seeds"] if not self.record(seed)]

    def output(self, *seeds: int | str) -> Path:
        """The folder of one seed's adapters and error, or of a packed run's checkpoint."""
        name = "-".join(map(str, seeds))
        return Path(self.config["output_dir"]) / "runs" / self.run_id(name)

    def packs(self, todo: list[int]) -> list[list[int]]:
        """The runs that the seeds to do need: one for all, or one each where the method cannot pack. Seeds of a checkpoint
        stay together, those that have a record by now included."""
        if not get_class(self.config["method"]["_target_"]).packs:
            return [[seed] for seed in todo]
        found: list[list[int]] = []
        for seeds in self._checkpoints().values():
            left = set(todo).difference(*found)
            if set(seeds) & left and set(seeds) <= set(self.config["seeds"]) - set().union(*found):
                found.append(seeds)
        rest = [seed for seed in todo if not any(seed in seeds for seeds in found)]
        return [*found, rest] if rest else found

    def _checkpoints(self) -> dict[Path, list[int]]:
        """The checkpoints of packed runs, with their seeds; copies that somebody made have other names."""
        paths = sorted(self.lock.parent.glob(f"{self.name}-s*/checkpoint.pt"))
        names = {path: path.parent.name.removeprefix(f"{self.name}-s") for path in paths}
        good = {path: name for path, name in names.items() if re.fullmatch(r"[0-9]+(-[0-9]+)*", name)}
        return {path: [int(seed) for seed in name.split("-")] for path, name in good.items()}

    @property
    def lock(self) -> Path:
        return self.output().with_name(f"{self.name}.lock")

    @contextlib.contextmanager
    def claimed(self, wait: float = 1.0) -> Iterator[bool]:
        """Whether this process may train the point (`files.claimed`). Its holder removes what killed processes left."""
        with claimed(self.lock, wait) as mine:
            if mine:
                sweep(self.leftovers())
            yield mine

    def leftovers(self) -> list[Path]:
        """Unfinished files of the point, and checkpoints of seeds that all have their records: a killed process's, unless
        somebody holds the point."""
        written = Path(self.config["results_dir"], "runs", self.run_id(0)).parent
        done = [path for path, seeds in self._checkpoints().items() if all(map(self.record, seeds))]
        return [*self.lock.parent.glob(f"{self.name}-s*/.*"), *written.glob(f".{self.name}-s*.json.*"), *done]

    def state(self, seed: int) -> str:
        """done | running | failed | missing. An interrupted run is missing, and resumes when it is started again."""
        if self.record(seed):
            return "done"
        if held(self.lock):
            return "running"
        return "failed" if (self.output(seed) / "error.txt").exists() else "missing"
