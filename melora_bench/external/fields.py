"""Values that come from files and command lines, held against the types that a dataclass declares for them."""

import dataclasses
import math
import types
import typing

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

MOST = 1_000_000  # of a setting that is no count: far above any that trains, far below float32's overflow
WORDS = {
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    str: "a text",
    types.NoneType: "null",
    list: "a list",
    dict: "a mapping",
}


def build(config: dict | DictConfig, group: str):
    """The object of a config group. Its values are data: none of them is made an object or looked up.

    Raises ValueError for a key that its class does not have, and for a value of another type than the key's.
    """
    values = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else dict(config)
    cls = get_class(values.pop("_target_"))
    check_fields(cls, values, f"{group}.")
    return cls(**values)


def check_fields(cls: type, values: dict, place: str) -> None:
    """Raises ValueError for a key of `values` that the dataclass `cls` does not take, one that it needs and lacks, a value
    of another type than its field's, and a float above MOST. `place` is what a message puts before a key: `method.`."""
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    if unknown := values.keys() - fields.keys():
        raise ValueError(f"{place}{min(map(str, unknown))} is unknown: there are {', '.join(sorted(fields))}")
    for name, field in fields.items():
        if name in values:
            if not _fits(values[name], field.type):
                raise ValueError(f"{place}{name}={str(values[name])[:60]} must be {_words(field.type)}")
            if type(values[name]) in (int, float) and _fits(0.5, field.type) and abs(values[name]) > MOST:
                raise ValueError(f"{place}{name}={values[name]} must be at most {MOST:,}")
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{place}{name} is missing")


def _fits(value: object, wanted: object) -> bool:
    """Whether a value is of a class of WORDS, of a union of types, or a list or dict of them. A whole number is a float too;
    true and false are no numbers; no number is nan or infinite."""
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, one) for one in inner)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            _fits(key, inner[0]) and _fits(item, inner[1]) for key, item in value.items()
        )
    if wanted is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is wanted


def _words(wanted: object) -> str:
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(map(_words, inner))
    if origin in (list, dict):
        return f"{WORDS[origin]} whose every {'item' if origin is list else 'value'} is {_words(inner[-1])}"
    return WORDS[wanted]
