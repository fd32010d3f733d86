"""Dropout of adapters and backbones: torch's own on a GPU; on a CPU, where draws are dear, 16 random bits per element."""

import torch
from torch import Tensor, nn

STEPS = 1 << 16


class Dropout(nn.Dropout):
    """Zeroes elements with probability p, divides the others by 1 - p; p is taken as the nearest multiple of 2^-16.

    Draws come from torch's default generator of the input's device. Raises ValueError for p outside 0 to 1.
    """

    def forward(self, x: Tensor) -> Tensor:
        dropped = round(self.p * STEPS)
        if not self.training or dropped == 0:
            return x
        if x.device.type != "cpu" or dropped == STEPS or torch.compiler.is_compiling():
            return super().forward(x)
        return _Masked.apply(x, dropped)


def replace_dropouts(model: nn.Module) -> None:
    """Put `Dropout` in the place of every nn.Dropout of a model."""
    for name, module in list(model.named_modules()):
        if type(module) is nn.Dropout:
            model.set_submodule(name, Dropout(module.p, module.inplace))


class _Masked(torch.autograd.Function):
    """One byte per element is kept for the backward pass, where nn.Dropout keeps a number of x's type."""

    @staticmethod
    def forward(ctx, x: Tensor, dropped: int) -> Tensor:
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(1 << 63), None)  # all 64 bits
        keep = words.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - STEPS // 2
        keep = keep.view(torch.uint8)  # products with it take half of the time of those with bools
        ctx.save_for_backward(keep)
        ctx.scale = STEPS / (STEPS - dropped)
        return (x * keep).mul_(ctx.scale)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return (grad * keep).mul_(ctx.scale), None
