"""Values that come from files and command lines, held against the types that a dataclass declares for them.

A field's type is a class of WORDS, a list or dict of them, a union, a Literal of texts, or one of these Annotated with
rules.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from melora_bench.external.shapes import printable

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


@dataclass(frozen=True)
class Rule:
    """What a value must be beside its type."""

    words: str
    holds: Callable[[Any], object]


def _is_number(value: Any, *, least: float, positive: bool = False) -> bool:
    return type(value) in (int, float) and least <= value <= MOST and not (positive and value == 0)


Positive = Annotated[
    float, Rule(f"a positive number, at most {MOST:,}", lambda value: _is_number(value, least=0, positive=True))
]
NonNegative = Annotated[float, Rule(f"a number from 0 on, at most {MOST:,}", lambda value: _is_number(value, least=0))]
Share = Annotated[NonNegative, Rule("a share of all steps, at most 1", lambda value: value <= 1)]
Count = Annotated[int, Rule("a positive whole number", lambda value: type(value) is int and value > 0)]
CountOrNull = Annotated[
    int | None,
    Rule("a positive whole number, or null", lambda value: value is None or (type(value) is int and value > 0)),
]
Folder = Annotated[str, Rule("a folder", lambda value: isinstance(value, str) and value != "")]


def build(config: dict | DictConfig, group: str) -> Any:
    """The object of a config group. Its values are data: none of them is made an object or looked up.

    Raises ValueError for a key that its class does not have, and for a value of another type than the key's.
    """
    values: dict[str, Any] = dict(config)
    if isinstance(config, DictConfig):
        values = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    cls = get_class(values.pop("_target_"))
    check_fields(cls, values, f"{group}.")
    return cls(**values)


def check_fields(cls: type, values: dict, place: str) -> None:
    """Raises ValueError for a key of `values` that the dataclass `cls` does not take, one that it needs and lacks, a
    value of another type than its field's or against its rules, and a float above MOST. `place` is what a message puts
    before a key: `method.`."""
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    if unknown := values.keys() - fields.keys():
        key = printable(min(map(str, unknown))[:60])
        raise ValueError(f"{place}{key} is unknown: there are {', '.join(sorted(fields))}")
    for name, field in fields.items():
        if name in values:
            _check(f"{place}{name}", values[name], field.type)
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{place}{name} is missing")


def _check(key: str, value: Any, wanted: Any) -> None:
    """Raises ValueError for a value that is not what its field wants; rules are asked first,
    as their words say more."""
    if typing.get_origin(wanted) is Annotated:
        wanted, *rules = typing.get_args(wanted)
        for rule in rules:
            if not rule.holds(value):
                raise ValueError(f"{key}={printable(str(value)[:60])} must be {rule.words}")
    if typing.get_origin(wanted) is Literal:
        *others, last = typing.get_args(wanted)
        if value not in (*others, last):
            raise ValueError(f"{key}={value!r} is unknown: use {', '.join(others)} or {last}")
        return
    if not _fits(value, wanted):
        raise ValueError(f"{key}={printable(str(value)[:60])} must be {_words(wanted)}")
    if type(value) in (int, float) and _fits(0.5, wanted) and abs(value) > MOST:
        raise ValueError(f"{key}={value} must be at most {MOST:,}")


def _fits(value: Any, wanted: Any) -> bool:
    """Whether a value is of a class of WORDS, of a union of types, or a list or dict of them. A whole number is a float
    too; true and false are no numbers; no number is nan or infinite."""
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if wanted is Any:
        return True
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


def _words(wanted: Any) -> str:
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(map(_words, inner))
    if origin in (list, dict) and inner[-1] is Any:
        return WORDS[origin]
    if origin in (list, dict):
        return f"{WORDS[origin]} whose every {'item' if origin is list else 'value'} is {_words(inner[-1])}"
    return WORDS[wanted]
