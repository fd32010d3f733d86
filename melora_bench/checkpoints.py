"""Epoch checkpoints (to resume a run) and adapter files (to keep, export and start from)."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from melora_bench.files import sha256_file, write_atomic


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trained tensors by name, each with its leading replica axis."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def save_checkpoint(path: Path, state: dict) -> None:
    write_atomic(path, lambda temporary: torch.save(state, temporary))


def load_checkpoint(path: Path) -> dict:
    """Raises ValueError when the file is not a whole checkpoint."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {key: state[key] for key in ("trainer", "seconds", "resumed_at")}
    except Exception as error:  # torch raises what zipfile and pickle do
        raise ValueError(f"{path} is not a readable checkpoint ({error}); delete it to start that run again") from error


def save_adapter(path: Path, model: nn.Module, replica: int, about: dict) -> None:
    """One seed's adapters and head, float32, without the replica axis; `about` travels as JSON in the metadata."""
    tensors = {name: value[replica].detach().float().cpu().clone() for name, value in trainable(model).items()}
    write_atomic(path, lambda temporary: save_file(tensors, temporary, metadata={"melora_bench": json.dumps(about)}))


def load_adapter(model: nn.Module, head: str, replica: int, path: Path) -> dict:
    """Copy an earlier run's adapters into one replica; the head stays fresh, as its classes may differ.

    Returns {"sha256": ..., "run_id": ...} for the record. Raises ValueError for a missing file or other shapes.
    """
    if not path.is_file():
        raise ValueError(f"init_from: {path} does not exist; name a finished run as <experiment>/<task>/<method>-<hash> "
                         "with an adapter of each seed, or its folder")  # fmt: skip
    try:
        file = safe_open(path, "pt")
    except Exception as error:
        raise ValueError(f"init_from: {path} is not a readable adapter ({error})") from error
    wanted = {name: value for name, value in trainable(model).items() if not name.startswith(f"{head}.")}
    with file:
        found = {name for name in file.keys() if not name.startswith(f"{head}.")}  # noqa: SIM118 (not a dict)
        if found != set(wanted):
            odd = sorted(found ^ set(wanted))[0]
            raise ValueError(f"init_from: {path} is another method's adapter or another backbone's ({odd})")
        for name, value in wanted.items():
            source: Tensor = file.get_tensor(name)
            if source.shape != value.shape[1:]:
                raise ValueError(f"init_from: {name} is {tuple(source.shape)} in {path}, here {tuple(value.shape[1:])}")
            value.data[replica] = source
        about = json.loads((file.metadata() or {}).get("melora_bench", "{}"))
        if about and about["epoch"] < about["config"]["epochs"]:
            raise ValueError(
                f"init_from: {path} is of an unfinished run (epoch {about['epoch']} of {about['config']['epochs']})"
            )
    return {"sha256": sha256_file(path), "run_id": about.get("run_id")}
