"""What this machine and a backbone's weights allow: precisions, and the frozen weights that they need."""

import torch
from torch import nn


def check_device(precision: str) -> None:
    """Raises ValueError for a precision that this machine does not have."""
    if precision == "fp16" and not torch.cuda.is_available():
        raise ValueError("precision=fp16 needs a CUDA device, and there is none here: use precision=bf16 or no")


def check_dtype(model: nn.Module, precision: str) -> None:
    """Raises ValueError for frozen weights in half precision under none: they meet adapters in float32."""
    dtype = next(model.parameters()).dtype
    if dtype != torch.float32 and precision == "no":
        name = str(dtype).removeprefix("torch.")
        raise ValueError(f"backbone.dtype={name} needs a precision like it: precision=bf16 or fp16")
