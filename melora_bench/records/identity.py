"""What makes two runs the same run: the config without seeds, places and what changes no number."""

import re
from typing import Any

from melora_bench.external.shapes import name
from melora_bench.files import sha256_json

# What a run's identity leaves out: seeds, the place of files, what does not change numbers, and what `method` repeats.
# Later keys: while null, older runs are the same runs.
UNLESS_SET = {"max_steps", "eval_steps", "warmup_steps", "no_decay", "pooling"}
NOT_IDENTITY = {"seeds", "experiment", "table", "per_method", "_target_"}
NOT_IDENTITY |= {"results_dir", "output_dir", "tracker", "shard", "compile", "layout"}
PATHS = {("data", "root"), ("backbone", "path")}


def identity(config: dict[str, Any], *trail: str) -> dict[str, Any]:
    """The resolved config without what is not part of a run's identity;
    records store it and `config_hash` hashes it."""
    left_out = NOT_IDENTITY | {key for key in UNLESS_SET if config.get(key) is None}
    kept = {key: value for key, value in config.items() if key not in left_out and (*trail, key) not in PATHS}
    return {key: identity(value, *trail, key) if isinstance(value, dict) else value for key, value in kept.items()}


def config_hash(identity: dict[str, Any]) -> str:
    """sha256 of the identity's canonical JSON; 2 and 2.0 are one value, so that a config and its JSON copy agree."""

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return int(value) if isinstance(value, float) and value.is_integer() else value

    return sha256_json(plain(identity))


def check_experiment(experiment: object) -> None:
    """Raises ValueError for an experiment's name that is not one part of a path."""
    if not name(experiment):
        raise ValueError(f"experiment={experiment} must be one folder's name, of letters, digits, '_', '-' and '.'")


def plain_name(text: str) -> str:
    """The text as a name: with "-" for every character that no name has."""
    return re.sub(r"[^\w.-]+", "-", text).strip(".-") or "unnamed"
