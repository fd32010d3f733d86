"""Training from Python: one point, its seeds side by side, as `melora-bench train` does."""

from melora_bench.records import records
from melora_bench.results.frames import Records
from melora_bench.training.configs import compose_run
from melora_bench.training.points import Point


def run(**settings: object) -> Records:
    """Train the seeds of one point that have no record yet; returns the records of all its seeds.

    settings: keys of configs/train.yaml with their values; one with a dot goes into a mapping, as in
    `run(method="melora", task="movie", seeds=[0, 1], **{"method.n": 4})`.

    Raises ValueError for a setting that there is not or that no run can have, and RunError, of one line, for a seed that fails
    or whose record is that of another run.
    """
    from hydra.errors import HydraException

    from melora_bench.training.run import run as train  # imports torch

    try:
        config, choices = compose_run([f"{key}={_written(value)}" for key, value in settings.items()])
    except HydraException as error:
        raise ValueError(" ".join(str(error).split())) from error
    point = Point.of(config, choices)
    train(config, choices)
    paths = (point.record(seed) for seed in point.config.seeds)
    return Records(records.load(path) for path in paths if path)


def _written(value: object) -> str:
    """The value as Hydra's command line takes it."""
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_written, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{_written(item)}' for key, item in value.items())}}}"
    if isinstance(value, int | float):
        return str(value)
    text = str(value).replace("\\'", "\\\\'").replace("'", "\\'")
    return f"'{text}'"
