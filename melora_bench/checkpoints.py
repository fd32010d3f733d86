"""Epoch checkpoints (to resume a run) and adapter files (to keep, export and start from)."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from melora_bench.files import sha256_file, write_atomic
from melora_bench.methods.base import AdapterLayer, ReplicatedLinear
from melora_bench.methods.interchange import from_peft


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trained tensors by name, those of adapter and head layers with their leading replica axis."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def adapter_tensors(model: nn.Module, replica: int | slice = slice(None)) -> dict[str, Tensor]:
    """What a run made or trains, by name, sharing memory with the model: the tensors of adapter and head layers, and a
    backbone's trained ones. `replica` picks one seed's, without the replica axis (which a backbone's tensors lack).
    A tensor that several layers share stands there once."""
    found: dict[str, Tensor] = {}
    seen = set()
    for prefix, module in model.named_modules():
        if isinstance(module, AdapterLayer | ReplicatedLinear):
            for name, value in module.state_dict(prefix=f"{prefix}.").items():
                if not name.startswith(f"{prefix}.base.") and value.data_ptr() not in seen:
                    seen.add(value.data_ptr())
                    found[name] = value[replica]
    return found | {name: value.detach() for name, value in trainable(model).items() if name not in found}


def counts(model: nn.Module, head: str) -> dict[str, int]:
    """How many numbers one seed trains: total, adapter, and below module `head`."""
    one = adapter_tensors(model, 0)
    numbers = {name: one[name].numel() for name in trainable(model)}
    in_head = sum(count for name, count in numbers.items() if name.startswith(f"{head}."))
    total = sum(numbers.values())
    return {"total": total, "adapter": total - in_head, "head": in_head}


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
    tensors = {name: value.float().cpu().clone() for name, value in adapter_tensors(model, replica).items()}
    write_atomic(path, lambda temporary: save_file(tensors, temporary, metadata={"melora_bench": json.dumps(about)}))


def about(path: Path) -> dict:
    """The account that `save_adapter` stored; {} for a file from elsewhere. Raises ValueError for an unreadable file."""
    return _read(path)[1]


def load_tensors(model: nn.Module, replica: int, path: Path, *, without: str = "") -> None:
    """Copy an adapter file into one replica, except what lies below the module `without`.

    Raises ValueError for a file of other tensors or shapes, before anything is copied.
    """
    tensors, wanted = (
        {name: value for name, value in found.items() if not name.startswith(f"{without}.")}
        for found in (_read(path)[0], adapter_tensors(model, replica))
    )
    if tensors.keys() != wanted.keys():
        odd = min(tensors.keys() ^ wanted.keys())
        raise ValueError(f"{path} is another method's adapter or another backbone's ({odd})")
    for name, value in wanted.items():
        if tensors[name].shape != value.shape:
            raise ValueError(f"{name} is {tuple(tensors[name].shape)} in {path}, here {tuple(value.shape)}")
    for name, value in wanted.items():
        value.copy_(tensors[name])


def load_adapter(model: nn.Module, head: str, replica: int, path: Path) -> dict:
    """Copy an earlier run's adapters into one replica; the head stays fresh, as its classes may differ.

    Returns {"sha256": ..., "run_id": ...} for the record. Raises ValueError for a missing file or other shapes.
    """
    if not path.is_file():
        raise ValueError(f"init_from: {path} does not exist; name a finished run as <experiment>/<task>/<method>-<hash> "
                         "with an adapter of each seed, its folder, or a PEFT LoRA adapter's")  # fmt: skip
    try:
        source = about(path)
        if source and source["step"] < source["total_steps"]:
            raise ValueError(f"{path} is of an unfinished run (step {source['step']} of {source['total_steps']})")
        load_tensors(model, replica, path, without=head)
    except ValueError as error:
        raise ValueError(f"init_from: {error}") from error
    return {"sha256": sha256_file(path), "run_id": source.get("run_id")}


def load_peft(layers: dict[str, AdapterLayer], head: str, replica: int, folder: Path) -> dict:
    """Start one replica at a PEFT LoRA adapter's update. Returns what `load_adapter` does; raises ValueError likewise."""
    path = folder / "adapter_model.safetensors"
    try:
        if not path.is_file():
            raise ValueError("holds no adapter_model.safetensors: save it with peft's save_pretrained")
        try:
            config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"has an adapter_config.json that is not JSON ({error})") from error
        if not isinstance(config, dict):
            raise ValueError("has an adapter_config.json that is not a JSON object")
        from_peft(config, _read(path)[0], layers, replica, head)
    except ValueError as error:
        raise ValueError(f"init_from: {folder} {error}") from error
    return {"sha256": sha256_file(path), "run_id": None}


def _read(path: Path) -> tuple[dict[str, Tensor], dict]:
    """The tensors, and the account of `save_adapter`."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return tensors, json.loads((file.metadata() or {}).get("melora_bench", "{}"))
    except Exception as error:  # safetensors raises its own
        raise ValueError(f"{path} is not a readable adapter ({error})") from error
