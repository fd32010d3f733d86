"""Between our layers and the folders of PEFT LoRA adapters:
exact, for methods whose update is a product of two factors."""

import json
import re
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from melora_bench.adapters.files import adapter_tensors, head_tensors, read_tensors
from melora_bench.files import write_atomic, write_text
from melora_bench.methods.attach import head_names, is_below
from melora_bench.methods.layers import AdapterLayer, FactoredLayer
from melora_bench.models.fused import Joined, of_stock

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
INITS = (True, False, None, "gaussian", "eva", "orthogonal")  # of PEFT's, those that leave the base weights alone
LARGEST = 2.0**128  # of single precision
NOTHING_ADAPTED = "dummy-target-modules"  # what PEFT takes for an adapter of modules_to_save alone


def write(
    folder: Path,
    model: nn.Module,
    layers: dict[str, FactoredLayer],
    replica: int,
    *,
    modules_to_save: list[str],
    task_type: str | None,
    base: str | None,
    revision: str | None = None,
) -> None:
    """Write adapter_config.json and adapter_model.safetensors (float32) of one replica, as peft.PeftModel reads them.

    modules_to_save: the names of the new head's modules; base: the backbone's public name.
    """
    entries, tensors = to_peft(of_stock(model, layers), replica)
    in_head = head_tensors(model)
    head = {name: value for name, value in adapter_tensors(model, replica).items() if name in in_head}
    tensors |= {f"{PREFIX}{name}": value.float().cpu().contiguous() for name, value in head.items()}
    write_atomic(folder / WEIGHTS, lambda temporary: save_file(tensors, temporary, metadata={"format": "pt"}))
    entries |= {
        "peft_type": "LORA",
        "task_type": task_type,
        "modules_to_save": modules_to_save or None,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "base_model_name_or_path": base,
        "revision": revision,
    }
    write_text(folder / CONFIG, json.dumps(entries, indent=2) + "\n")


def read(folder: Path) -> tuple[dict, dict[str, Tensor]]:
    """The adapter_config.json and the tensors of a folder. Raises ValueError for a file that cannot be read."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{folder} has an {CONFIG} that is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{folder} has an {CONFIG} that is not a JSON object")
    return config, read_tensors(folder / WEIGHTS)


def load_peft(layers: dict[str, AdapterLayer], head: str | list[str], replica: int, folder: Path) -> None:
    """Start one replica at a PEFT LoRA adapter's update. Raises ValueError for a folder that
    holds no such adapter, or one that does not fit."""
    config, tensors = read(folder)
    try:
        from_peft(config, tensors, layers, replica, head)
    except ValueError as error:
        raise ValueError(f"{folder} {error}") from error


def to_peft(layers: Mapping[str, FactoredLayer | Joined], replica: int) -> tuple[dict, dict[str, Tensor]]:
    """The entries of adapter_config.json that say which modules have which rank, and the tensors: lora_A (k, d_in) and
    lora_B (d_out, k) of each adapted module, the scale folded in. Directions that are zero are left out."""
    tensors, ranks = {}, {}
    for name, layer in layers.items():
        B, A = (factor[replica].detach().float().cpu() for factor in layer.lora_factors())
        used = (B != 0).any(0) & (A != 0).any(1)
        if used.any():
            ranks[name] = int(used.sum())
            tensors[f"{PREFIX}{name}.lora_A.weight"] = A[used].contiguous()
            tensors[f"{PREFIX}{name}.lora_B.weight"] = B[:, used].contiguous()
    r = max(ranks.values(), default=1)
    others = {name: rank for name, rank in ranks.items() if rank != r}
    modules = sorted(ranks) or NOTHING_ADAPTED
    # alpha = rank makes PEFT's scale 1.
    entries = {"r": r, "lora_alpha": r, "target_modules": modules, "rank_pattern": others, "alpha_pattern": others}
    return entries, tensors


def from_peft(
    config: dict, tensors: dict[str, Tensor], layers: dict[str, AdapterLayer], replica: int, head: str | list[str]
) -> None:
    """Start one replica at a PEFT LoRA adapter; what it has of the model's head is not taken, as its classes may
    differ.

    Raises ValueError for another kind of adapter, one that holds more than the factors of `layers`, factors that are
    not of the rank that the config says or that the layers cannot hold, and a config that cannot be one.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ValueError(f"is {_shown(kind)}, not LORA")
    extras = [
        key for key in ("use_dora", "lora_bias", "trainable_token_indices", "target_parameters") if config.get(key)
    ]
    if extras:
        raise ValueError(f"is {kind} with {extras[0]}, which is more than two factors per module")
    init = config.get("init_lora_weights", True)
    if init not in INITS:
        raise ValueError(
            f"has init_lora_weights={_shown(init)}, for which PEFT changes the base weights: "
            "convert it to plain LoRA with peft's save_pretrained first"
        )
    if type(config.get("use_rslora") or False) is not bool:
        raise ValueError(f"has use_rslora={_shown(config['use_rslora'])}, which is neither true nor false")
    ranks = _by_module(config, "r", "rank_pattern", layers)
    alphas = _by_module(config, "lora_alpha", "alpha_pattern", layers)
    named = re.compile(rf"{re.escape(PREFIX)}(.+)\.lora_([AB])\.weight")
    factors = [match.groups() for match in map(named.fullmatch, tensors) if match]
    adapted = {name for name, _ in factors}
    heads = [f"{PREFIX}{name}" for name in head_names(head)]
    others = [name for name in tensors if not named.fullmatch(name) and not is_below(name, heads)]
    if others:
        raise ValueError(f"holds {_shown(min(others))}, which is neither a factor of LoRA nor of the head")
    if len(factors) != 2 * len(adapted):
        raise ValueError("lacks one of the factors of a module")
    if adapted != set(layers):
        name = _shown(min(adapted ^ set(layers)))
        raise ValueError(f"adapts {len(adapted)} modules, this run {len(layers)}: {name} is one of one side alone")
    for name, layer in layers.items():
        A, B = (tensors[f"{PREFIX}{name}.lora_{part}.weight"].float() for part in "AB")
        rank = ranks[name]
        if A.dim() != 2 or B.dim() != 2 or not len(A) == B.shape[1] == rank > 0:
            raise ValueError(f"has rank {rank} for {name}, but factors of shapes {tuple(B.shape)} and {tuple(A.shape)}")
        B = B * (alphas[name] / rank ** (0.5 if config.get("use_rslora") else 1))
        if not (torch.isfinite(A).all() and torch.isfinite(B).all()):
            raise ValueError(f"has factors for {name} that are not finite")
        try:
            layer.load_lora_factors(replica, B, A)
        except ValueError as error:
            raise ValueError(f"does not fit {name}: {error}") from error


def _by_module(config: dict, key: str, pattern: str, names: Iterable[str]) -> dict[str, float]:
    """Each module's rank or alpha: the number of the first entry of the pattern that equals the module's name or the
    end of its name; without such an entry, the config's number under `key`.

    PEFT takes the pattern's keys for regular expressions, of which a hostile one never ends: here a dot is a dot.
    """
    entries = {} if config.get(pattern) is None else config[pattern]
    if not isinstance(entries, dict):
        raise ValueError(f"has {pattern}={_shown(entries)}, which is no object of numbers")
    for place, value in {key: config.get(key), **entries}.items():
        if type(value) not in (int, float) or not abs(value) < LARGEST:
            raise ValueError(f"has {_shown(place)}={_shown(value)}, which is no number")
    for name in entries:
        if not re.fullmatch(r"\^?[\w.-]+", name):  # ^ stands for the beginning, as in PEFT's documentation
            raise ValueError(f"has {pattern} of {_shown(name)}, a regular expression: name each module that it means")

    def number(name: str) -> float:
        ends = (end for end in entries if f".{name}".endswith(f".{end}") or end == f"^{name}")
        return entries.get(next(ends, None), config[key])

    return {name: number(name) for name in names}


def _shown(value: object) -> str:
    """A short printable text unchanged; any other value as Python writes it, shortened."""
    if isinstance(value, str) and value.isprintable() and len(value) < 200:
        return value
    return reprlib.repr(value)
