"""The files of a checkpoint's folder: which of them hold weights, and the sha256 of what a run rests on."""

import hashlib
import json
from pathlib import Path

from melora_bench.external import shapes
from melora_bench.files import sha256_json, sha256_once

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
WRITER = {"transformers_version", "_name_or_path"}  # keys of a config that say who wrote it, and from what


def joined_sha256(paths: list[Path]) -> str:
    """The sha256 of one file, or of several files' joined hashes."""
    hashes = [sha256_once(path) for path in paths]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def config_sha256(folder: Path) -> str:
    """Of what config.json says, but for who wrote it. Raises ValueError for a file that is no JSON object."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return sha256_json({key: value for key, value in config.items() if key not in WRITER})
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{folder} holds no config.json that is a JSON object ({error})") from error


def weight_files(folder: Path) -> list[Path]:
    """The files that `load` reads weights from, and `origin` hashes: model.safetensors, or the shards that an index
    names.

    Raises ValueError for a folder without them, an index that names anything but files beside it, and a folder that is
    an adapter too, which transformers would load on top of the weights, or instead of them.
    """
    if (folder / "adapter_config.json").exists():
        raise ValueError(
            f"{folder} holds an adapter_config.json: name the folder of the model itself, without adapters"
        )
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise ValueError(f"{folder} holds neither {WEIGHTS} nor {INDEX}: name a transformers checkpoint folder")
    try:
        names = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        shards = sorted({str(name) for name in names})
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{folder / INDEX} is no index of weights ({type(error).__name__})") from error
    for name in shards:
        if not (shapes.name(name) and name.endswith(".safetensors")) or not (folder / name).is_file():
            raise ValueError(f"{folder / INDEX} names {name!r}, which is no .safetensors file beside it")
    if not shards:
        raise ValueError(f"{folder / INDEX} names no file of weights")
    return [folder / name for name in shards]
