"""To which experiment the records of a table's runs belong: the table's own, or, for a trial, one beside it."""

from collections.abc import Mapping

from omegaconf.errors import OmegaConfBaseException

from melora_bench.files import sha256_json
from melora_bench.grids.jobs import jobs
from melora_bench.grids.tables import Table
from melora_bench.records.identity import NOT_IDENTITY, PATHS, config_hash, plain_name
from melora_bench.training.configs import GROUPS, compose_run
from melora_bench.training.points import Point

# Overrides that leave a record comparable with its table's others: which copy of the data is read, and on which
# backbone.
SAME_TABLE = NOT_IDENTITY | {"data", "backbone", *(".".join(path) for path in PATHS)}
NAME_LENGTH = 80


def experiment(table: Table, overrides: list[str]) -> tuple[str, list[str]]:
    """(name, trial): the experiment of a table's runs under these overrides, and those overrides that make them a
    trial.

    A trial's points are other points than the table's (other epochs, say, or fewer rows), so its records get an
    experiment of their own, in which they cannot stand in a cell of the table. Its name tells no path.
    `experiment=NAME` has the last word. Raises what Hydra does for overrides that it does not take.
    """
    given = dict(override.partition("=")[::2] for override in overrides)
    if "experiment" in given:
        return given["experiment"], []
    same = SAME_TABLE | table.narrowing
    changed = {key: value for key, value in given.items() if key not in same and not key.startswith("hydra")}
    if not changed or _same_points(table, overrides, changed):
        return table.experiment, []
    return trial_name(table.experiment, changed), sorted(f"{key}={value}" for key, value in changed.items())


def trial_name(name: str, changed: Mapping[str, object]) -> str:
    """The name of a trial's experiment beside the experiment `name`, from the values that make it one. What may be a
    path stands there as a hash."""
    texts = {key: str(value) for key, value in changed.items()}
    hidden = {key for key, value in texts.items() if "/" in value and key not in GROUPS}
    shown = sorted(f"{key}-{sha256_json(value)[:8] if key in hidden else value}" for key, value in texts.items())
    full = "-".join([name, *map(plain_name, shown)])
    return full if len(full) <= NAME_LENGTH else f"{full[:NAME_LENGTH]}-{sha256_json(sorted(texts.items()))[:8]}"


def own_experiment(table: Table, overrides: list[str]) -> str:
    """The name that `experiment` gives; of a trial, a line on the terminal says so."""
    name, trial = experiment(table, overrides)
    if trial:
        text = f"trial  {' '.join(trial)}: records go to experiment={name}, beside those of the table"
        print(f"{text}; give experiment=NAME for another", flush=True)
    return name


def _same_points(table: Table, overrides: list[str], changed: dict[str, str]) -> bool:
    """Whether the overrides `changed` leave every point that is selected the point that it is without them."""
    composed = [override for override in overrides if not override.startswith(("hydra", "table="))]
    kept = [override for override in composed if override.partition("=")[0] not in changed]
    try:
        pairs = zip(jobs(table, composed), jobs(table, kept), strict=True)
        return all(_hash(table, job) == _hash(table, other) for job, other in pairs if job != other)
    except (ValueError, OmegaConfBaseException):  # no point, or one that cannot be: refused where it is run
        return False


def _hash(table: Table, job: list[str]) -> str:
    """The config hash of a point. The table's own experiment has the table's name."""
    return config_hash(Point.of(*compose_run([f"table={table.experiment}", *job])).identity)
