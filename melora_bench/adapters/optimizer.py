"""The groups of trained tensors that a torch optimizer gets: their learning rates and who is spared weight decay."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from melora_bench.adapters.files import head_tensors, trainable
from melora_bench.methods.base import Method


def param_groups(
    model: nn.Module, method: Method, lr: float, head_lr: float, no_decay: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer, none of them empty:
    the adapters as the method wants them (LoRA+ has two rates), then the head.

    no_decay: endings of names; tensors so called stand in groups of their own, with weight decay 0.
    """
    params, in_head = trainable(model), head_tensors(model)
    adapters = {name: value for name, value in params.items() if name not in in_head}
    heads = [value for name, value in params.items() if name in in_head]
    groups = [*method.param_groups(adapters, lr), {"params": heads, "lr": head_lr}]
    spared = {id(value) for name, value in params.items() if name.endswith(tuple(no_decay))}
    parts = []
    for group in groups:
        decayed = [value for value in group["params"] if id(value) not in spared]
        others = [value for value in group["params"] if id(value) in spared]
        parts += [{**group, "params": decayed}, {**group, "params": others, "weight_decay": 0.0}]
    return [part for part in parts if part["params"]]
