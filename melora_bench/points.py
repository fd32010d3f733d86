"""One point of a grid: a resolved config, its identity, and its place among records and outputs."""

import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from melora_bench import records

GROUPS = ("method", "task", "backbone", "data", "recipe")
POSITIVE = ("lr", "epochs", "batch_size", "max_length", "accumulation", "eval_batch_size", "bucket", "max_grad_norm")


@dataclass(frozen=True, kw_only=True)
class Point:
    config: dict
    choices: dict  # the options of the config groups
    name: str  # <method>-<hash>: unique among the points of a task

    @classmethod
    def of(cls, cfg: DictConfig, choices: dict) -> "Point":
        """Raises ValueError for a value that no run can have."""
        config = OmegaConf.to_container(cfg, resolve=True)
        seeds = config["seeds"]
        if not isinstance(seeds, list) or not seeds or len(set(seeds)) != len(seeds):
            raise ValueError(f"seeds={seeds} must be a list of different numbers, such as [0,1,2]")
        if not all(isinstance(seed, int) and seed >= 0 for seed in seeds):
            raise ValueError(f"seeds={seeds} must be whole numbers from 0 on")
        for key in POSITIVE:
            if not (isinstance(config[key], int | float) and config[key] > 0):
                raise ValueError(f"{key}={config[key]} must be a positive number")
        for key in ("max_train_rows", "max_eval_rows"):
            if config[key] is not None and not config[key] > 0:
                raise ValueError(f"{key}={config[key]} must be positive, or null for all rows")
        if config["precision"] not in ("no", "bf16", "fp16"):
            raise ValueError(f"precision={config['precision']!r} is unknown: use no, bf16 or fp16")
        digest = records.config_hash(records.identity(config))
        choices = {group: choices[group] for group in GROUPS}
        return cls(config=config, choices=choices, name=f"{choices['method']}-{digest[:10]}")

    @property
    def identity(self) -> dict:
        return records.identity(self.config)

    def run_id(self, seed: int) -> str:
        return f"{self.config['experiment']}/{self.choices['task']}/{self.name}-s{seed}"

    def record(self, seed: int) -> Path | None:
        """This point's record, whichever experiment it was run in."""
        return records.find(self.config["results_dir"], self.name, self.choices["task"], seed)

    def output(self, *seeds: int) -> Path:
        """The folder of one seed's adapters and error, or of a packed run's checkpoint."""
        name = "-".join(map(str, seeds))
        return Path(self.config["output_dir"]) / "runs" / self.run_id(name)

    def state(self, seed: int) -> str:
        """done | running | failed | missing. An interrupted run is missing, and resumes when it is started again."""
        if self.record(seed):
            return "done"
        if _is_alive(self.output(seed) / "running.json"):
            return "running"
        return "failed" if (self.output(seed) / "error.txt").exists() else "missing"


def _is_alive(path: Path) -> bool:
    """Whether the process that wrote running.json still runs; on another host, whether it has within the last day."""
    try:
        owner = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    if owner["host"] != socket.gethostname():
        return time.time() - path.stat().st_mtime < 86400
    try:
        os.kill(owner["pid"], 0)  # signal 0 only asks
    except ProcessLookupError:
        return False
    except PermissionError:  # it runs, as another user
        return True
    return True
