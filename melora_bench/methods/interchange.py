"""Between our layers and the PEFT LoRA adapter format: exact, as every method's update is a product of two factors."""

import re

from torch import Tensor

from melora_bench.methods.base import AdapterLayer

PREFIX = "base_model.model."
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


def from_peft(config: dict, tensors: dict[str, Tensor], layers: dict[str, AdapterLayer], replica: int) -> None:
    """Start one replica at a PEFT LoRA adapter; its head is not taken, as its classes may differ.

    Raises ValueError for another kind of adapter, other modules, or factors that the layers cannot hold.
    """
    odd = [key for key in ("use_dora", "lora_bias", "trainable_token_indices", "target_parameters") if config.get(key)]
    if config.get("peft_type") != "LORA" or odd:
        raise ValueError(
            f"is {config.get('peft_type')} with {odd[0]}" if odd else f"is {config.get('peft_type')}, not LORA"
        )
    named = re.compile(rf"{re.escape(PREFIX)}(.+)\.lora_A\.weight")
    found = {match[1] for match in map(named.fullmatch, tensors) if match}
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
