"""One score to make: what makes two scores the same, and the place of its record among the others."""

import functools
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from omegaconf import OmegaConf

from melora_bench.external.shapes import leaves
from melora_bench.files import CONFIGS
from melora_bench.grids.trials import trial_name
from melora_bench.instructeval.base import Benchmark
from melora_bench.instructeval.config import ScoreConfig
from melora_bench.instructeval.models import Scored
from melora_bench.records.identity import config_hash, identity

log = logging.getLogger(__name__)
# Of how a model is asked, beside the benchmark's own keys.
ASKED = ("limit", "seed", "which")


@dataclass(frozen=True, kw_only=True)
class ScorePoint:
    """One model and one benchmark."""

    config: ScoreConfig
    benchmark: Benchmark
    scored: Scored
    # What decides the score: how the model was trained, and how it is asked.
    identity: dict
    # As they are recorded.
    choices: dict
    experiment: str

    @classmethod
    def of(cls, config: ScoreConfig, choices: dict, benchmark: Benchmark, scored: Scored) -> "ScorePoint":
        """choices: the options of the config groups.

        A record has its benchmark under the key `task`, in the identity and in the choices: tables call their columns
        tasks, whether a column is a task or a benchmark, and every score that was recorded before has its hash over
        that key.
        """
        asked = how(config.benchmark, {key: getattr(config, key) for key in ASKED}, scored.precision)
        return cls(
            config=config,
            benchmark=benchmark,
            scored=scored,
            identity={**scored.config, "trained_on": scored.config.get("task"), **asked},
            choices={**scored.choices, "task": choices["benchmark"], "data": choices["data"]},
            experiment=experiment_of(config, choices["benchmark"], scored, asked),
        )

    @property
    def hash(self) -> str:
        return config_hash(self.identity)

    @property
    def name(self) -> str:
        return f"{self.choices['method']}-{self.hash[:10]}-s{self.scored.seed}"

    @property
    def run_id(self) -> str:
        return f"{self.experiment}/{self.choices['task']}/{self.name}"

    @property
    def record(self) -> Path:
        return Path(self.config.results_dir, "runs", f"{self.run_id}.json")

    @property
    def folder(self) -> Path:
        """Of the prompts and outputs, beside the record."""
        return Path(self.config.results_dir, "runs", self.run_id)

    @property
    def lock(self) -> Path:
        return Path(self.config.output_dir, "runs", f"{self.run_id}.lock")


def how(benchmark: dict, asked: dict, precision: str) -> dict:
    """How a model is asked, as it stands in the identity of its score. asked: the values of ASKED."""
    return {"task": {**identity(benchmark), **asked}, "precision": precision}


def experiment_of(config: ScoreConfig, benchmark: str, scored: Scored, asked: dict) -> str:
    """Where the score's record goes. A model that is asked otherwise than configs/ does (a slice, say, or fewer shots)
    is a trial: its score gets an experiment beside the run's, in which it cannot stand in a cell of the run's table.

    benchmark: the option of the config group; asked: `how` the model is asked."""
    if config.experiment is not None:
        return config.experiment
    if config.run is None:
        return scored.experiment
    usual, usual_benchmark = (_yaml(name) for name in ("instructeval", f"benchmark/{benchmark}"))
    usual_precision = usual["precision"] or scored.config.get("precision", "no")
    wanted = dict(leaves(how(usual_benchmark, {key: usual[key] for key in ASKED}, usual_precision)))
    changed = {key: value for key, value in leaves(asked) if value != wanted.get(key)}
    if not changed:
        return scored.experiment
    short = {f"task.{key}": key for key in ASKED}
    changed = {short.get(key, key): value for key, value in changed.items()}
    name = trial_name(scored.experiment, changed)
    _say_trial(" ".join(sorted(f"{key}={value}" for key, value in changed.items())), name)
    return name


def _yaml(name: str) -> dict:
    return cast(dict, OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{name}.yaml")))


# Once, however many models.
@functools.cache
def _say_trial(changes: str, name: str) -> None:
    where = f"records go to experiment={name}, beside those of the run; give experiment=NAME for another"
    log.info("trial  %s: %s", changes, where)
