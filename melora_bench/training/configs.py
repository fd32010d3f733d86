"""From configs/ to values: composing a command line, and building the object of a config group."""

import functools

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from melora_bench.external.fields import build as build
from melora_bench.files import CONFIGS, home

GROUPS = ("method", "task", "backbone", "data", "recipe")


def compose_run(overrides: list[str]) -> tuple[DictConfig, dict]:
    """The config of a command line as scripts/train.py sees it, and the options of its groups; inside a command of Hydra's
    too."""
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            cfg = compose("train", [*map(home, overrides)], return_hydra_config=True)
    finally:
        GlobalHydra.instance().hydra = outer
    return OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"]), dict(cfg.hydra.runtime.choices)


@functools.cache
def known_keys() -> set[str]:
    return (set(OmegaConf.load(CONFIGS / "train.yaml")) - {"defaults", "hydra"}) | {
        *GROUPS[:-1],
        "table",
    }
