"""What a point of a grid is called: the settings in which it differs from the grid's other points."""

from collections.abc import Iterable

ALWAYS = ("task", "method")


def differing(jobs: list[list[str]]) -> set[str]:
    """The keys that have several values among a grid's jobs of one method, a missing value being one too."""
    by_method: dict[str, list[dict[str, str]]] = {}
    for job in jobs:
        settings = _settings(job)
        by_method.setdefault(settings.get("method", ""), []).append(settings)
    keys = {key for group in by_method.values() for settings in group for key in settings}
    return {
        key for key in keys if any(len({settings.get(key) for settings in group}) > 1 for group in by_method.values())
    }


def point_name(job: list[str], keys: Iterable[str]) -> str:
    """`mrpc mplora n=2`: task and method, then the job's values of `keys` without the group that they are of."""
    settings = _settings(job)
    shown = [f"{key.removeprefix('method.')}={settings[key]}" for key in settings if key in set(keys) - set(ALWAYS)]
    return " ".join([*(settings[key] for key in ALWAYS if key in settings), *shown])


def _settings(job: list[str]) -> dict[str, str]:
    return {key: value for key, _, value in (item.partition("=") for item in job)}
