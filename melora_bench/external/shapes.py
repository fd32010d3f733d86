"""What JSON from elsewhere must look like: a shape is written like the value, with predicates for its ends."""

import re
import reprlib
from collections.abc import Iterable, Iterator
from typing import Any

NAME = re.compile(r"(?!\.\.?/?$)[\w.-]+")
LARGEST = 2.0**128  # of single precision; sums and squares of such numbers stay finite in double
# What no text of one line holds: control characters, Unicode's line ends, half characters, and what XML does not allow.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")


def printable(text: str) -> str:
    """The text on one line: what no line holds stands there as Python writes it."""
    return CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


def text(value: object) -> bool:
    """a text"""
    return type(value) is str


def name(value: object) -> bool:
    """a name of letters, digits, _, - and ."""
    return type(value) is str and NAME.fullmatch(value) is not None


def names(value: object) -> bool:
    """names of letters, digits, _, - and ., joined by /"""
    return type(value) is str and all(map(NAME.fullmatch, value.split("/")))


def flag(value: object) -> bool:
    """true or false"""
    return type(value) is bool


def count(value: object) -> bool:
    """a whole number from 0 on"""
    return type(value) is int and 0 <= value < LARGEST


def number(value: Any) -> bool:
    """a number"""
    return type(value) in (int, float) and -LARGEST < value < LARGEST


def misfit(value: Any, shape: Any) -> str:
    """Where and how a value differs from its shape, such as ".epochs.0.step is -1, not a whole number from 0 on"; else
    empty.

    A shape is a predicate, whose docstring says what it takes; [shape] for a list, [shape, ...] for one that is not
    empty; (None, shape) for null or that; {key: shape} for an object that has these keys, may lack those that end in
    "?", and may have others; {str: shape} for one whose every value has the shape.
    """
    if type(shape) is tuple:
        if value is None:
            return ""
        shape = shape[1]
    if callable(shape):
        return "" if shape(value) else f" is {reprlib.repr(value)}, not {shape.__doc__}"
    if type(value) is not type(shape):
        return f" is {reprlib.repr(value)}, not {'a list' if type(shape) is list else 'an object'}"
    if type(shape) is list:
        if shape[1:] and not value:
            return " is empty"
        pairs = enumerate(value)
        return next((f".{key}{what}" for key, item in pairs if (what := misfit(item, shape[0]))), "")
    items: Iterable[tuple[str, Any]]
    for key, inner in shape.items():
        if key is str:
            items = value.items()
        elif key in value:
            items = ((key, value[key]),)
        elif key[-1] != "?":
            return f" has no {key}"
        else:
            key = key[:-1]
            items = ((key, value[key]),) if key in value else ()
        leaf = callable(inner)  # asked here, as a call for each end of ten thousand records takes its time
        for place, item in items:
            if not (leaf and inner(item)) and (what := misfit(item, inner)):
                return f".{shown(place)}{what}"
    return ""


def shown(key: str) -> str:
    """A key as it stands, or as Python writes it unless it is a name."""
    return key if name(key) else reprlib.repr(key)


def leaves(value: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, value) of everything in an object that is no object itself."""
    for key, item in value.items():
        yield from leaves(item, f"{prefix}{key}.") if isinstance(item, dict) else [(f"{prefix}{key}", item)]


def texts(value: object) -> Iterator[str]:
    """Every text in a value, the keys of objects included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)
