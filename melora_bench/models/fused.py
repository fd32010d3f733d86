"""Every weight matrix as a linear layer of its own: some decoders and encoders keep several in one, or transposed.

"W_q and W_v" of a paper are two matrices. Where a model has one for query, key and value, an adapter of the whole is
another thing: LoRA shares A among the three, MELoRA's first blocks read into the query alone. So such a layer becomes a
`Fused` one of named parts, `Wqkv.query` beside `Wqkv.value`, which adapters find as they find any linear layer.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from melora_bench.methods.layers import FactoredLayer

QKV = ("query", "key", "value")
# By model_type and the last name of the layer: its parts.
PARTS = {
    ("modernbert", "Wqkv"): QKV,
    ("modernbert", "Wi"): ("input", "gate"),
    ("phi3", "qkv_proj"): QKV,
    ("phi3", "gate_up_proj"): ("gate", "up"),
    ("gpt2", "c_attn"): QKV,
    ("openai-gpt", "c_attn"): QKV,
    ("gpt_neox", "query_key_value"): QKV,
    ("bloom", "query_key_value"): QKV,
}
# The kinds whose parts alternate from head to head.
BY_HEAD = ("gpt_neox", "bloom")
# How models of other kinds call a matrix that holds several.
FUSED_NAMES = {name for (_, name), parts in PARTS.items() if parts == QKV} | {"in_proj", "qkv"}


class Fused(nn.Module):
    """Linear layers that read the same x, in the place of the one layer that holds all their rows."""

    order: Tensor | None

    def __init__(self, whole: nn.Linear, rows: dict[str, Tensor]) -> None:
        super().__init__()
        for name, part in rows.items():
            linear = nn.Linear(whole.in_features, len(part), bias=whole.bias is not None, device="meta")
            linear.weight = nn.Parameter(whole.weight.detach()[part], whole.weight.requires_grad)
            if whole.bias is not None:
                linear.bias = nn.Parameter(whole.bias.detach()[part], whole.bias.requires_grad)
            self.add_module(name, linear)
        self.rows = rows
        together = torch.cat(list(rows.values()))
        alternate = not torch.equal(together, torch.arange(len(together)))
        self.register_buffer("order", together.argsort() if alternate else None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.cat([self.get_submodule(name)(x) for name in self.rows], dim=-1)
        return out if self.order is None else out[..., self.order]

    def whole(self) -> nn.Linear:
        """The one layer again; its parts must be plain."""
        parts: list[Any] = [self.get_submodule(name) for name in self.rows]
        order = torch.cat(list(self.rows.values())).argsort()
        return _linear(
            torch.cat([part.weight for part in parts])[order],
            None if parts[0].bias is None else torch.cat([part.bias for part in parts])[order],
        )


def separate(model: PreTrainedModel) -> None:
    """Put linear layers in the place of a model's transposed and fused ones. Weights packed into 4 bits stay."""
    kind, config = model.config.model_type, model.config
    if kind not in {known for known, _ in PARTS}:
        return
    for name, module in list(model.named_modules()):
        parts = PARTS.get((kind, name.rpartition(".")[2]))
        if type(module) is Conv1D:
            module = _linear(module.weight.T, module.bias)
            model.set_submodule(name, module)
        if parts and type(module) is nn.Linear:
            model.set_submodule(name, Fused(module, dict(zip(parts, _rows(config, module, len(parts)), strict=True))))


def stock(model: PreTrainedModel) -> PreTrainedModel:
    """The model, changed in place, with the layers that its class has; its linear layers must be plain."""
    if not any(isinstance(module, Fused) for module in model.modules()):
        return model
    for name, module in list(model.named_modules()):
        if isinstance(module, Fused):
            model.set_submodule(name, module.whole())
    with torch.device("meta"):
        plain = type(model)(model.config)
    for name, module in plain.named_modules():
        if type(module) is Conv1D:
            linear, conv = model.get_submodule(name), Conv1D(module.nf, module.nx)
            conv.weight.data, conv.bias.data = linear.weight.detach().T.contiguous(), linear.bias.detach()
            model.set_submodule(name, conv)
    return model


@dataclass(frozen=True, kw_only=True)
class Joined:
    """The updates of a fused layer's parts as one of the whole, which factors can be: those of the parts stacked."""

    parts: list[tuple[FactoredLayer, Tensor]]  # with the rows of each
    d_out: int

    def lora_factors(self) -> tuple[Tensor, Tensor]:
        """B (R, d_out, k) and A (R, k, d_in), k the sum of the parts' ranks."""
        factors = [(*layer.lora_factors(), rows) for layer, rows in self.parts]
        B = [b.new_zeros(len(b), self.d_out, b.shape[2]).index_copy(1, rows.to(b.device), b) for b, _, rows in factors]
        return torch.cat(B, 2), torch.cat([a for _, a, _ in factors], 1)


def of_stock(model: nn.Module, layers: dict[str, FactoredLayer]) -> dict[str, "FactoredLayer | Joined"]:
    """The adapted layers by the names that the model's class has for them."""
    found: dict[str, FactoredLayer | Joined] = {}
    for name, layer in layers.items():
        above = name.rpartition(".")[0]
        fused = model.get_submodule(above)
        if not isinstance(fused, Fused):
            found[name] = layer
        elif above not in found:
            parts = {f"{above}.{part}": rows for part, rows in fused.rows.items()}
            adapted = [(layers[part], rows) for part, rows in parts.items() if part in layers]
            found[above] = Joined(parts=adapted, d_out=sum(map(len, fused.rows.values())))
    return found


def refuse_whole(model: PreTrainedModel, names: Iterable[str]) -> None:
    """Raises ValueError where an adapted layer holds several matrices whose places in it nobody knows."""
    for name in names:
        if name.rpartition(".")[2] in FUSED_NAMES:
            known = ", ".join(sorted({kind for kind, _ in PARTS}))
            raise ValueError(
                f"{name} of a {model.config.model_type} holds query, key and value in one matrix, and only those of "
                f"{known} are told apart, and not in 4 bits: give other method.target_modules"
            )


def _rows(config: PretrainedConfig, whole: nn.Linear, count: int) -> list[Tensor]:
    """The rows of each part of a fused layer."""
    every = torch.arange(whole.out_features)
    if config.model_type in BY_HEAD:
        return list(every.view(config.num_attention_heads, count, -1).transpose(0, 1).reshape(count, -1))
    queries, shared = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
    if count == len(QKV) and shared:
        unit = whole.out_features // (queries + 2 * shared)
        return list(every.split([queries * unit, shared * unit, shared * unit]))
    return list(every.view(count, -1))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach().contiguous(), weight.requires_grad)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach(), bias.requires_grad)
    return linear
