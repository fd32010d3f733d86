"""Between our layers and the PEFT LoRA adapter format: exact, as every method's update is a product of two factors."""

import re
import reprlib
from collections.abc import Iterable

import torch
from torch import Tensor

from melora_bench.methods.base import AdapterLayer

PREFIX = "base_model.model."
INITS = (True, False, None, "gaussian", "eva", "orthogonal")  # of PEFT's, those that leave the base weights alone
LARGEST = 2.0**128  # of single precision
NOTHING_ADAPTED = "dummy-target-modules"  # what PEFT takes for an adapter of modules_to_save alone


def to_peft(layers: dict[str, AdapterLayer], replica: int) -> tuple[dict, dict[str, Tensor]]:
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
    return {
        "r": r,
        "lora_alpha": r,
        "target_modules": modules,
        "rank_pattern": others,
        "alpha_pattern": others,
    }, tensors


def from_peft(
    config: dict, tensors: dict[str, Tensor], layers: dict[str, AdapterLayer], replica: int, head: str
) -> None:
    """Start one replica at a PEFT LoRA adapter; what it has below module `head` is not taken, as its classes may differ.

    Raises ValueError for another kind of adapter, one that holds more than the factors of `layers`, factors that are not of
    the rank that the config says or that the layers cannot hold, and a config that cannot be one.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ValueError(f"is {_shown(kind)}, not LORA")
    odd = [key for key in ("use_dora", "lora_bias", "trainable_token_indices", "target_parameters") if config.get(key)]
    if odd:
        raise ValueError(f"is {kind} with {odd[0]}, which is more than two factors per module")
    init = config.get("init_lora_weights", True)
    if init not in INITS:
        raise ValueError(f"has init_lora_weights={_shown(init)}, for which PEFT changes the base weights: "
                         "convert it to plain LoRA with peft's save_pretrained first")  # fmt: skip
    if type(config.get("use_rslora") or False) is not bool:
        raise ValueError(f"has use_rslora={_shown(config['use_rslora'])}, which is neither true nor false")
    ranks = _by_module(config, "r", "rank_pattern", layers)
    alphas = _by_module(config, "lora_alpha", "alpha_pattern", layers)
    named = re.compile(rf"{re.escape(PREFIX)}(.+)\.lora_([AB])\.weight")
    factors = [match.groups() for match in map(named.fullmatch, tensors) if match]
    found = {name for name, _ in factors}
    others = [name for name in tensors if not named.fullmatch(name) and not name.startswith(f"{PREFIX}{head}.")]
    if others:
        raise ValueError(f"holds {_shown(min(others))}, which is neither a factor of LoRA nor of the head")
    if len(factors) != 2 * len(found):
        raise ValueError("lacks one of the factors of a module")
    if found != set(layers):
        odd = min(found ^ set(layers))
        raise ValueError(f"adapts {len(found)} modules, this run {len(layers)}: {_shown(odd)} is one of one side alone")
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
    """Each module's rank or alpha: of the first entry of the pattern that is its name or the end of it, else that of `key`.

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

    def value(name: str) -> float:
        ends = (end for end in entries if f".{name}".endswith(f".{end}") or end == f"^{name}")
        return entries.get(next(ends, None), config[key])

    return {name: value(name) for name in names}


def _shown(value: object) -> str:
    """A name as it stands; anything else, and what would not stay one short line, as Python writes it."""
    plain = isinstance(value, str) and value.isprintable() and len(value) < 200
    return value if plain else reprlib.repr(value)
