"""From configs/ to values: composing a command line, and building the object of a config group."""

import functools

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from melora_bench.external.fields import check_fields
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


def build(config: dict | DictConfig, group: str):
    """The object of a config group. Its values are data: none of them is made an object or looked up.

    Raises ValueError for a key that its class does not have, and for a value of another type than the key's.
    """
    values = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else dict(config)
    cls = get_class(values.pop("_target_"))
    check_fields(cls, values, f"{group}.")
    return cls(**values)


@functools.cache
def known_keys() -> set[str]:
    return (set(OmegaConf.load(CONFIGS / "train.yaml")) - {"defaults", "hydra"}) | {
        *GROUPS[:-1],
        "table",
    }
