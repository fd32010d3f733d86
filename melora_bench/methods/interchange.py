"""Between our layers and the PEFT LoRA adapter format: exact, as every method's update is a product of two factors."""

import re

from torch import Tensor

from melora_bench.methods.base import AdapterLayer

PREFIX = "base_model.model."
INITS = (True, False, None, "gaussian", "eva", "orthogonal")  # of PEFT's, those that leave the base weights alone
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

    Raises ValueError for another kind of adapter, one that holds more than the factors of `layers`, or factors that the
    layers cannot hold.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ValueError(f"is {kind}, not LORA")
    odd = [key for key in ("use_dora", "lora_bias", "trainable_token_indices", "target_parameters") if config.get(key)]
    if odd:
        raise ValueError(f"is {kind} with {odd[0]}, which is more than two factors per module")
    if config.get("init_lora_weights", True) not in INITS:
        raise ValueError(f"has init_lora_weights={config['init_lora_weights']!r}, for which PEFT changes the base weights: "
                         "convert it to plain LoRA with peft's save_pretrained first")  # fmt: skip
    if type(config.get("lora_alpha")) not in (int, float):
        raise ValueError(f"has lora_alpha={config.get('lora_alpha')!r}, which is no number")
    named = re.compile(rf"{re.escape(PREFIX)}(.+)\.lora_([AB])\.weight")
    factors = [match.groups() for match in map(named.fullmatch, tensors) if match]
    found = {name for name, _ in factors}
    others = [name for name in tensors if not named.fullmatch(name) and not name.startswith(f"{PREFIX}{head}.")]
    if others:
        raise ValueError(f"holds {min(others)}, which is neither a factor of LoRA nor of the head")
    if len(factors) != 2 * len(found):
        raise ValueError("lacks one of the factors of a module")
    if found != set(layers):
        odd = min(found ^ set(layers))
        raise ValueError(f"adapts {len(found)} modules, this run {len(layers)}: {odd} is one of one side alone")
    for name, layer in layers.items():
        A, B = (tensors[f"{PREFIX}{name}.lora_{part}.weight"].float() for part in "AB")
        alpha = next((value for key, value in (config.get("alpha_pattern") or {}).items()
                      if re.fullmatch(rf"(.*\.)?({key})", name)), config["lora_alpha"])  # fmt: skip
        scale = alpha / len(A) ** (0.5 if config.get("use_rslora") else 1)
        try:
            layer.load_lora_factors(replica, B * scale, A)
        except ValueError as error:
            raise ValueError(f"does not fit {name}: {error}") from error
