"""One point of a grid: a resolved config, its identity, and its place among records and outputs."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from melora_bench.external.shapes import names
from melora_bench.files import CONFIGS, sweep
from melora_bench.records.identity import config_hash
from melora_bench.training.claims import claimed, held
from melora_bench.training.configs import GROUPS, RunConfig


@dataclass(frozen=True, kw_only=True)
class Point:
    config: RunConfig
    choices: dict  # the options of the config groups
    name: str  # <method>-<hash>: unique among the points of a task
    table: str | None  # whose grid it is composed with, and whose own experiment is called so

    @classmethod
    def of(cls, cfg: DictConfig, choices: dict) -> "Point":
        """Raises ValueError for a value that no run can have."""
        config = RunConfig.of(cfg)
        table, choices = choices.get("table"), {group: choices[group] for group in GROUPS}
        for group, choice in choices.items():
            if choice is not None and not names(choice):
                raise ValueError(f"{group}={choice!r} must be a name of letters, digits, '_', '-' and '.'")
        name = f"{choices['method']}-{config_hash(config.identity)[:10]}"
        return cls(config=config, choices=choices, name=name, table=table)

    @property
    def identity(self) -> dict[str, Any]:
        return self.config.identity

    @property
    def recipe(self) -> str:
        """Which recipe a run follows, with what it mostly is, in words."""
        config, name = self.config, self.choices["recipe"]
        whose = "no paper's" if "/" not in str(name) else f"{name.partition('/')[0]}'s"
        settings = f"lr {config.lr:g}, {config.epochs} epochs, batch {config.batch_size}"
        return f"recipe={name} ({whose}): {settings}, backbone {self.choices['backbone']}, data {self.choices['data']}"

    @property
    def label(self) -> str:
        """What a person calls the point: task, method, and the settings that set it apart,
        as in "mrpc melora n=4 r=2"."""
        shown = [f"{key.removeprefix('method.')}={self._value(key)}" for key in self._settings()]
        return " ".join([self.choices["task"], self.choices["method"], *shown])

    def _settings(self) -> list[str]:
        """The keys in which the rows of the table differ for this method; without a table, the method's keys whose
        values are not those of its YAML."""
        method = self.choices["method"]
        if self.config.table:
            rows = [row["settings"] for row in self.config.table["rows"] if row["settings"].get("method") == method]
            keys = dict.fromkeys(key for row in rows for key in row if key not in ("task", "method"))
            return [key for key in keys if len(_values(rows, key)) > 1]
        usual = OmegaConf.to_container(OmegaConf.load(CONFIGS / "method" / f"{method}.yaml"))
        assert isinstance(usual, dict)
        changed = {key for key, value in self.config.method.items() if key in usual and usual[key] != value}
        return [f"method.{key}" for key in usual if key in changed and "${" not in str(usual[key])]

    def _value(self, key: str) -> Any:
        """The value of a key of the config such as method.n; None where there is none."""
        group, _, name = key.partition(".")
        if key in self.choices:
            return self.choices[key]
        value = getattr(self.config, group, None)
        return value.get(name) if name and isinstance(value, dict) else value

    def run_id(self, seed: int | str) -> str:
        return f"{self.config.experiment}/{self.choices['task']}/{self.name}-s{seed}"

    def record(self, seed: int) -> Path | None:
        """The record of one seed, if it was run in this experiment before."""
        path = self.record_path(seed)
        return path if path.exists() else None

    def record_path(self, seed: int) -> Path:
        """Where the record of one seed is, or will be."""
        return Path(self.config.results_dir, "runs", f"{self.run_id(seed)}.json")

    def todo(self) -> list[int]:
        """The seeds without a record."""
        return [seed for seed in self.config.seeds if not self.record(seed)]

    def output(self, *seeds: int | str) -> Path:
        """The folder of one seed's adapters and error, or of a packed run's checkpoint."""
        name = "-".join(map(str, seeds))
        return Path(self.config.output_dir) / "runs" / self.run_id(name)

    def checkpoint(self, seeds: list[int]) -> Path:
        """The file from which an interrupted run of these seeds side by side goes on."""
        return self.output(*seeds) / "checkpoint.pt"

    def packs(self, todo: list[int]) -> list[list[int]]:
        """The runs that the seeds to do need: one for all, or one each where the method or the backbone cannot pack.
        Seeds that share a checkpoint are kept together, even if some of them have been recorded since."""
        if not (get_class(self.config.method["_target_"]).packs and self.config.backbone.get("packs", True)):
            return [[seed] for seed in todo]
        kept: list[list[int]] = []
        for seeds in self._checkpoints().values():
            taken = {seed for pack in kept for seed in pack}
            if set(seeds) & set(todo) - taken and set(seeds) <= set(self.config.seeds) - taken:
                kept.append(seeds)
        rest = [seed for seed in todo if not any(seed in seeds for seeds in kept)]
        return [*kept, rest] if rest else kept

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
        with claimed(self.lock, wait) as may_train:
            if may_train:
                sweep(self.leftovers())
            yield may_train

    def leftovers(self) -> list[Path]:
        """Unfinished files of the point, and checkpoints of seeds that all have their records: a killed process's,
        unless somebody holds the point."""
        written = self.record_path(0).parent
        done = [path for path, seeds in self._checkpoints().items() if all(map(self.record, seeds))]
        return [*self.lock.parent.glob(f"{self.name}-s*/.*"), *written.glob(f".{self.name}-s*.json.*"), *done]

    def state(self, seed: int) -> str:
        """done | running | failed | missing. An interrupted run is missing, and resumes when it is started again."""
        if self.record(seed):
            return "done"
        if held(self.lock):
            return "running"
        return "failed" if (self.output(seed) / "error.txt").exists() else "missing"


def _values(rows: list[dict[str, Any]], key: str) -> set[str]:
    """The values that the rows of a table give to a key, as text; a row without it has none."""
    given = (row.get(key, [None]) for row in rows)
    return {str(value) for values in given for value in (values if isinstance(values, list) else [values])}
