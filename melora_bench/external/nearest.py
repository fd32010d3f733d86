"""The name that somebody may have meant."""

import difflib
from collections.abc import Iterable


def nearest_name(name: str, names: Iterable[str], *, cutoff: float = 0.6) -> str:
    """The one of `names` that is most like `name`, whatever the case; empty where none has a likeness of `cutoff`."""
    by_lower = {each.lower(): each for each in names}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[near[0]] if near else ""
