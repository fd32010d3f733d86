"""Adapter files: the tensors that training made for one seed, by name,
and the account of the run that made them."""

import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from melora_bench.external import shapes
from melora_bench.external.shapes import count, flag, misfit, names, number, shown, text
from melora_bench.files import options, write_atomic
from melora_bench.methods.attach import is_below
from melora_bench.methods.layers import HeadLinear, Replicated
from melora_bench.records.identity import config_hash

# What the account of an adapter file holds at least.
ACCOUNT = {
    "run_id": names,
    "seed": count,
    "choices": {"method": shapes.name, "task": shapes.name, "backbone": shapes.name},
    "config": {"method": {}, "task": {}, "backbone": {}},
    "config_hash": text,
    "git": {"commit": (None, text), "dirty": (None, flag)},
    "model": {"name": shapes.name, "sha256": text, "commit": (None, text)},
    "step": count,
    "total_steps": count,
    "epoch": number,
    "metrics": {str: number},
}


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trained tensors by name, those of `Replicated` layers with their leading replica axis."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def adapter_tensors(model: nn.Module, replica: int | slice = slice(None)) -> dict[str, Tensor]:
    """What a run made or trains, by name, sharing memory with the model: the tensors of `Replicated` layers, and a
    backbone's trained ones. `replica` picks one seed's, without the replica axis (which a backbone's tensors lack).
    A tensor that several layers share stands there once."""
    tensors: dict[str, Tensor] = {}
    seen = set()
    for prefix, module in model.named_modules():
        if isinstance(module, Replicated):
            for name, value in module.own_tensors().items():
                if value.data_ptr() not in seen:
                    seen.add(value.data_ptr())
                    tensors[f"{prefix}.{name}"] = value[replica]
    return tensors | {name: value.detach() for name, value in trainable(model).items() if name not in tensors}


def head_tensors(model: nn.Module) -> set[str]:
    """The names of the tensors of the model's new head."""
    heads = [(prefix, module) for prefix, module in model.named_modules() if isinstance(module, HeadLinear)]
    return {f"{prefix}.{name}" for prefix, module in heads for name in module.own_tensors()}


def backbone_tensors(model: nn.Module, adapted: Iterable[str]) -> set[str]:
    """The names of trained tensors that belong neither to the modules `adapted` nor to the new head."""
    in_head = head_tensors(model)
    return {name for name in adapter_tensors(model) if name not in in_head and not is_below(name, adapted)}


def counts(model: nn.Module) -> dict[str, int]:
    """How many numbers one seed trains: total, adapter, and head."""
    one, in_head = adapter_tensors(model, 0), head_tensors(model)
    numbers = {name: one[name].numel() for name in trainable(model)}
    total, head = sum(numbers.values()), sum(number for name, number in numbers.items() if name in in_head)
    return {"total": total, "adapter": total - head, "head": head}


def save_adapter(path: Path, model: nn.Module, replica: int, description: dict) -> None:
    """One seed's adapters and head, float32, without the replica axis; `description` goes into the metadata as JSON."""
    tensors = {name: value.float().cpu().clone() for name, value in adapter_tensors(model, replica).items()}
    write_atomic(
        path, lambda temporary: save_file(tensors, temporary, metadata={"melora_bench": json.dumps(description)})
    )


def stored_account(path: Path) -> dict:
    """The account that `save_adapter` stored; {} for a file from elsewhere.
    Raises ValueError for an unreadable file."""
    with _opened(path) as file:
        return json.loads((file.metadata() or {}).get("melora_bench", "{}"))


def account(path: Path) -> dict:
    """The account of a run that `save_adapter` stored in a file, checked before anything in it is used.

    Raises ValueError for an account that lacks a key, has a value of another type, names an option that configs/ does
    not have or a place outside the folders of runs, or does not agree with its own hash.
    """
    values = stored_account(path)
    if absent := ACCOUNT.keys() - values.keys():
        raise ValueError(
            f"{path} does not say which run it is of (no {min(absent)}): it was not written by scripts/train.py"
        )
    if problem := misfit(values, ACCOUNT) or _problem(values):
        raise ValueError(f"{path} says what no run of ours does: {problem.removeprefix('.')}")
    return values


def _problem(values: dict) -> str:
    """What is wrong with an account of the right shape; empty: nothing."""
    for group in ("method", "task", "backbone"):
        if values["choices"][group] not in options(group):
            there = ", ".join(sorted(options(group)))
            return f"{group}={values['choices'][group][:60]} is no option: there are {there}"
    parts = values["run_id"].split("/")
    if len(parts) != 3 or not parts[2].endswith(f"-s{values['seed']}"):
        return f"run_id={values['run_id'][:60]} is not <experiment>/<task>/<method>-<hash>-s<seed>"
    if values["step"] > values["total_steps"]:
        return f"step {values['step']} is above total_steps {values['total_steps']}"
    if values["config_hash"] != config_hash(values["config"]):
        return "config_hash is not that of config"
    hashes = {
        "model.sha256": values["model"]["sha256"],
        "model.commit": values["model"]["commit"] or "0" * 40,
        "git.commit": values["git"]["commit"] or "0" * 40,
    }
    wrong = [key for key, value in hashes.items() if not re.fullmatch(r"[0-9a-f]{40}([0-9a-f]{24})?", value)]
    wrong += [f"metric {shown(key)}" for key in values["metrics"] if not shapes.name(key)]
    return f"{wrong[0]} cannot be" if wrong else ""


def load_tensors(model: nn.Module, replica: int, path: Path, *, head: bool = True) -> None:
    """Copy an adapter file into one replica; head=False: except the head, which stays as it is.

    Raises ValueError for a file of other tensors or shapes, before anything is copied.
    """
    left_out = set() if head else head_tensors(model)
    tensors, wanted = (
        {name: value for name, value in values.items() if name not in left_out}
        for values in (read_tensors(path), adapter_tensors(model, replica))
    )
    if tensors.keys() != wanted.keys():
        other = min(tensors.keys() ^ wanted.keys())
        raise ValueError(f"{path} is another method's adapter or another backbone's ({other})")
    for name, value in wanted.items():
        if tensors[name].shape != value.shape:
            raise ValueError(f"{name} is {tuple(tensors[name].shape)} in {path}, here {tuple(value.shape)}")
    for name, value in wanted.items():
        value.copy_(tensors[name])


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of an adapter file by name. Raises ValueError for an unreadable file."""
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except Exception as error:  # safetensors raises its own
        raise ValueError(f"{path} is not a readable adapter ({error})") from error
