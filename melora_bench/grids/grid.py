"""From the rows of a table to the points of its grid, and to the experiment that their records belong to."""

import itertools

from omegaconf.errors import OmegaConfBaseException

from melora_bench.files import home, sha256_json
from melora_bench.records.identity import NOT_IDENTITY, PATHS, config_hash, plain_name
from melora_bench.training.configs import GROUPS, compose_run
from melora_bench.training.points import Point

# Overrides that leave a record comparable with its table's others: which copy of the data is read, and on which backbone.
SAME_TABLE = NOT_IDENTITY | {"data", "backbone", *(".".join(path) for path in PATHS)}
NAME_LENGTH = 80


def points(table: dict, overrides: list[str]) -> list[list[str]]:
    """The command-line overrides of every point of a table: rows x tasks, narrowed or changed by the user's overrides.

    The tasks are those of the columns, or the one that the table's models are `trained_on` before they are scored on the
    columns. A row that is `untrained` has no point.

    An override of the task, the method, or a method's key that some row lists, selects (`task=mrpc`, `method=melora`,
    `method.n=4,8`); any other applies to every point but those of a row with a value of its own, which stays. A row with
    another backbone of its own is left out. Raises ValueError when nothing is left, naming what there is, and for an override
    that reaches no point.
    """
    listed = selecting(table)
    parsed = [override.partition("=") for override in overrides]
    select = {key: _values(value) for key, _, value in parsed if key in listed}
    rest = {key: override for override, (key, _, _) in zip(overrides, parsed, strict=True) if key not in select}
    for key, _, value in parsed:
        if key not in select and "," in value and value[0] not in "[{'\"":
            raise ValueError(
                f"{key}={value}: a table can be narrowed by {', '.join(sorted(listed))}; give {key} one value"
            )
    found, used = [], set()
    tasks = as_list(table.get("trained_on", table["tasks"]))
    for row in table["rows"]:
        if row.get("untrained"):
            continue
        grid = {"task": tasks, **row["points"]}
        choices = {key: [str(value) for value in as_list(values)] for key, values in grid.items()}
        if any(key not in choices for key in select) or not _same_backbone(table, choices, rest):
            continue
        kept = {key: [v for v in values if v in select.get(key, values)] for key, values in choices.items()}
        others = [override for key, override in rest.items() if key not in choices]
        used |= rest.keys() - choices.keys() if all(kept.values()) else set()
        for values in itertools.product(*kept.values()):
            found.append([f"{key}={value}" for key, value in zip(kept, values, strict=True)] + others)
    if not found:
        there = {
            key: [v for row in table["rows"] for v in map(str, as_list(row["points"].get(key, [])))] for key in listed
        }
        there["task"] = tasks
        wanted = " ".join(f"{key}={','.join(values)}" for key, values in select.items())
        has = "; ".join(f"{key}={','.join(dict.fromkeys(there[key]))}" for key in select)
        raise ValueError(f"no point of this table has {wanted}; it has {has}")
    if unused := rest.keys() - used - {"backbone"}:
        raise ValueError(f"{rest[min(unused)]} changes no point: every row that is left has a value of its own")
    return found


def selecting(table: dict) -> set[str]:
    """The keys by which a table can be narrowed."""
    return {key for row in table["rows"] for key in row["points"] if key.split(".")[0] == "method"} | {"task"}


def experiment(grid: dict, overrides: list[str]) -> tuple[str, list[str]]:
    """(name, trial): the experiment of a table's runs under these overrides, and those overrides that make them a trial.

    A trial's points are other points than the table's (other epochs, say, or fewer rows), so its records get an experiment
    of their own, in which they cannot stand in a cell of the table. Its name tells no path. `experiment=NAME` has the last
    word. Raises what Hydra does for overrides that it does not take.
    """
    given = dict(override.partition("=")[::2] for override in overrides)
    if "experiment" in given:
        return given["experiment"], []
    same = SAME_TABLE | selecting(grid["table"])
    changed = {key: value for key, value in given.items() if key not in same and not key.startswith("hydra")}
    if not changed or _same_points(grid, overrides, changed):
        return grid["experiment"], []
    return trial_name(grid["experiment"], changed), sorted(f"{key}={value}" for key, value in changed.items())


def trial_name(own: str, changed: dict[str, object]) -> str:
    """The name of a trial's experiment beside the experiment `own`, from the values that make it one. What may be a path
    stands there as a hash."""
    texts = {key: str(value) for key, value in changed.items()}
    hidden = {key for key, value in texts.items() if "/" in value and key not in GROUPS}
    shown = sorted(f"{key}-{sha256_json(value)[:8] if key in hidden else value}" for key, value in texts.items())
    name = "-".join([own, *map(plain_name, shown)])
    return name if len(name) <= NAME_LENGTH else f"{name[:NAME_LENGTH]}-{sha256_json(sorted(texts.items()))[:8]}"


def _same_points(grid: dict, overrides: list[str], changed: dict[str, str]) -> bool:
    """Whether the overrides `changed` leave every point that is selected the point that it is without them."""
    composed = [override for override in overrides if not override.startswith(("hydra", "table="))]
    kept = [override for override in composed if override.partition("=")[0] not in changed]
    try:
        pairs = zip(*(points(grid["table"], each) for each in (composed, kept)), strict=True)
        return all(_hash(grid, job) == _hash(grid, own) for job, own in pairs if job != own)
    except (ValueError, OmegaConfBaseException):  # no point, or one that cannot be: refused where it is run
        return False


def _hash(grid: dict, job: list[str]) -> str:
    """The table's own experiment has the table's name."""
    return config_hash(Point.of(*compose_run([f"table={grid['experiment']}", *job])).identity)


def own_experiment(grid: dict, overrides: list[str]) -> str:
    """The name that `experiment` gives; of a trial, a line on the terminal says so."""
    name, trial = experiment(grid, overrides)
    if trial:
        print(f"trial  {' '.join(trial)}: records go to experiment={name}, beside those of the table; give "
              "experiment=NAME for another", flush=True)  # fmt: skip
    return name


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """(tables, overrides) of a command line that names tables beside the overrides of their sweep."""
    overrides = [argument for argument in arguments if "=" in argument or argument[:1] in ("+", "~")]
    return [argument for argument in arguments if argument not in overrides], list(map(home, overrides))


def reference(table: dict, row: dict) -> str | None:
    """The label of the row with which a row is compared: the one that it names, else the table's first of LoRA."""
    first = next((row["label"] for row in table["rows"] if row["points"]["method"] == "lora"), None)
    return row.get("reference", first)


def rival(table: dict) -> str | None:
    """With what the rows of a table are compared, in words."""
    labels = {reference(table, row) for row in table["rows"]}
    return labels.pop() if len(labels) == 1 else "its LoRA"


def as_list(value: object) -> list:
    return list(value) if isinstance(value, list | tuple) else [value]


def _same_backbone(table: dict, choices: dict[str, list[str]], rest: dict[str, str]) -> bool:
    asked = rest.get("backbone", "").partition("=")[2]
    return "backbone" not in choices or asked in ("", table.get("backbone"), *choices["backbone"])


def _values(text: str) -> list[str]:
    return [value.strip() for value in text.split(",")]
