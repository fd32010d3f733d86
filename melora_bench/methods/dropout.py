"""Dropout of adapters and backbones: torch's own on a GPU; on a CPU, where draws are dear,
one draw per dropped element."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """Zeroes elements with probability p, divides the others by 1 - p.

    Draws come from torch's default generator of the input's device. Raises ValueError for p outside 0 to 1.
    """

    __call__: Callable[..., Tensor]

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu" or self.p == 1 or torch.compiler.is_compiling():
            return super().forward(x)
        # torch gives `apply` no types.
        dropped: Tensor = _Dropped.apply(x, self.p)  # type: ignore[no-untyped-call]
        return dropped


def replace_dropouts(model: nn.Module) -> None:
    """Put `Dropout` in the place of every nn.Dropout of a model."""
    for name, module in list(model.named_modules()):
        if type(module) is nn.Dropout:
            model.set_submodule(name, Dropout(module.p, module.inplace))


class _Dropped(torch.autograd.Function):
    """The places of the dropped elements are kept for the backward pass,
    where nn.Dropout keeps a number for every element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        places = _places(x.numel(), p)
        ctx.save_for_backward(places)
        ctx.scale = 1 / (1 - p)
        return _drop(x, places, ctx.scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        return _drop(grad, places, ctx.scale), None


def _drop(x: Tensor, places: Tensor, scale: float) -> Tensor:
    out = torch.mul(x, scale, out=torch.empty(x.shape, dtype=x.dtype))
    out.view(-1).index_fill_(0, places, 0)
    return out


def _places(count: int, p: float) -> Tensor:
    """Which of `count` elements fall away, each with probability p: ascending, the gaps between them geometric."""
    last, parts = -1, [torch.empty(0, dtype=torch.int64)]
    while last < count - 1:
        expected = p * (count - 1 - last)
        uniform = torch.rand(int(expected + math.sqrt(expected)) + 1, dtype=torch.float64)
        gaps = uniform.neg_().log1p_().div_(math.log1p(-p)).clamp_(max=count).floor_().add_(1)
        parts.append(gaps.cumsum_(0).add_(last).long())
        last = int(parts[-1][-1])
    places = torch.cat(parts)
    return places[: torch.searchsorted(places, count)]
