"""Dataclasses whose fields are the keys of a YAML: unknown keys are refused,
and the comment above a field documents it."""

import dataclasses
import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

from melora_bench.external.fields import check_fields
from melora_bench.external.nearest import nearest_name


def checked(cls: type, values: object, place: str, **others: object) -> dict[str, Any]:
    """The keyword arguments of the dataclass `cls`: the values of a YAML's node, and others that stand elsewhere.

    place: what a message begins with. Raises ValueError, of one line, for a node that is no mapping, for an unknown key
    (with the nearest one that there is), for a missing key, and for a value of another type than its field's.
    """
    keys = [item.name for item in dataclasses.fields(cls) if item.name not in others]
    if not isinstance(values, Mapping):
        raise ValueError(f"{place}{str(values)[:60]} must be a mapping with the keys {', '.join(keys)}")
    for name in values:
        if name not in keys:
            raise ValueError(f"{place}{unknown(name, keys)}")
    arguments = {**{str(name): value for name, value in values.items()}, **others}
    check_fields(cls, arguments, place)
    return arguments


def unknown(name: object, known: Iterable[str]) -> str:
    """What is said of a key that there is not."""
    near = nearest_name(str(name), known, cutoff=0)
    return f"{str(name)[:60]} is unknown: did you mean {near}? There are {', '.join(known)}"


def documented(cls: type) -> dict[str, str]:
    """{field: the comment above it} of a dataclass, in the order of its fields.
    A field without a comment is missing."""
    above = re.compile(r"((?:^ +# .*\n)+)^ +(\w+): ", re.MULTILINE)
    comments = {
        name: re.sub(r"^ +# ", "", text, flags=re.MULTILINE) for text, name in above.findall(inspect.getsource(cls))
    }
    return {name: " ".join(text.split()) for name, text in comments.items()}
