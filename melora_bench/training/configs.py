"""From configs/ to values: composing a command line, the keys of a run, and building the object of a config group."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from melora_bench.external.fields import (
    Count,
    CountOrNull,
    Folder,
    NonNegative,
    Positive,
    Rule,
    Share,
    check_fields,
)
from melora_bench.external.shapes import CONTROL, leaves, texts
from melora_bench.files import CONFIGS, home
from melora_bench.records.identity import check_experiment, identity

GROUPS = ("method", "task", "backbone", "data", "recipe")

Seeds = Annotated[
    list[int],
    Rule(
        "a list of different numbers, such as [0,1,2]",
        lambda seeds: isinstance(seeds, list) and seeds and len(set(map(str, seeds))) == len(seeds),
    ),
    Rule("whole numbers from 0 on", lambda seeds: all(type(seed) is int and seed >= 0 for seed in seeds)),
]
WarmupSteps = Annotated[
    int | None,
    Rule(
        "a whole number from 0 on, or null for warmup_ratio",
        lambda steps: steps is None or (type(steps) is int and steps >= 0),
    ),
]
Endings = Annotated[
    list[str] | None,
    Rule(
        "a list of endings of names, such as [bias], or null",
        lambda endings: (
            endings is None or (isinstance(endings, list) and endings and all(isinstance(one, str) for one in endings))
        ),
    ),
]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The resolved config of a run. Its fields are the keys of configs/train.yaml, which says what they mean."""

    method: dict[str, Any]
    task: dict[str, Any]
    backbone: dict[str, Any]
    data: dict[str, Any]
    table: dict[str, Any] | None = None  # the grid that the run is a point of
    experiment: str
    seeds: Seeds
    init_from: str | None
    lr: Positive
    head_lr_scale: NonNegative
    weight_decay: NonNegative
    no_decay: Endings
    warmup_ratio: Share
    warmup_steps: WarmupSteps
    max_grad_norm: Positive
    epochs: Count
    max_steps: CountOrNull
    eval_steps: CountOrNull
    batch_size: Count
    max_length: Count
    max_train_rows: CountOrNull
    max_eval_rows: CountOrNull
    per_method: dict[str, Any]
    accumulation: Count
    eval_batch_size: Count
    bucket: Count
    precision: Literal["no", "bf16", "fp16"]
    results_dir: Folder
    output_dir: Folder
    tracker: str | None
    layout: str
    compile: bool
    shard: bool

    @classmethod
    def of(cls, cfg: DictConfig) -> "RunConfig":
        """Raises ValueError for a key that a run does not have, and for a value that no run can have."""
        values = _resolved(cfg)
        keys = {field.name for field in dataclasses.fields(cls)}
        if unknown := values.keys() - keys:
            raise ValueError(f"{min(unknown)} is no key of configs/train.yaml: it has {', '.join(sorted(keys))}")
        check_experiment(values.get("experiment"))
        check_fields(cls, values, "")
        for text in texts(values):
            if CONTROL.search(text.replace("\n", "").replace("\t", "")):
                raise ValueError(f"{text[:60]!r} holds control characters, which no record may have")
        for key, value in leaves(values):
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{key}={value} must be a finite number")
        return cls(**values)

    @property
    def identity(self) -> dict[str, Any]:
        """What makes two runs the same run: records store it."""
        return identity(vars(self))


def compose_run(overrides: list[str]) -> tuple[DictConfig, dict]:
    """The config of a command line as scripts/train.py sees it, and the options of its groups;
    inside a command of Hydra's too."""
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            cfg = compose("train", [*map(home, overrides)], return_hydra_config=True)
    finally:
        GlobalHydra.instance().hydra = outer
    return OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"]), dict(cfg.hydra.runtime.choices)


def _resolved(config: DictConfig) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
