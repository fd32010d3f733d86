"""LoRA-FA: LoRA with A frozen. Zhang et al., 2023. https://arxiv.org/abs/2308.03303"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from melora_bench.methods.lora import LoRA, LoRALayer


class LoRAFALayer(LoRALayer):
    """A LoRA layer whose A (R, r, d_in) is frozen."""

    def __init__(self, base: nn.Linear, replicas: int, **options: Any) -> None:
        super().__init__(base, replicas, **options)
        self.A.requires_grad_(False)


@dataclass(kw_only=True)
class LoRAFA(LoRA):
    """h = W x + s B A drop(x), A (R, r, d_in) drawn once and frozen, B (R, d_out, r) trained from 0; s = alpha / r.

    The update stays in the row space of the first A. The optimizer is plain AdamW on B, as in the paper, not the
    projected gradient of PEFT's LoraFAOptimizer.

    Parameters: r * d_out
    Rank: r
    Cost: r * (d_in + d_out)
    Departures: A is drawn as LoRA's (`init_a`), not Gaussian.
    Tested against: stock PEFT with lora_A frozen, 24 clipped AdamW steps.
    """

    def make_layer(self, base: nn.Linear, replicas: int) -> LoRAFALayer:
        options = {"r": self.r, "alpha": self.alpha, "lora_dropout": self.lora_dropout, "init": self.init_a}
        return LoRAFALayer(base, replicas, **options)
