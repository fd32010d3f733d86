"""rsLoRA: a rank stabilization scaling factor for fine-tuning with LoRA. Kalajdzievski, 2023. https://arxiv.org/abs/2312.03732"""

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from melora_bench.methods.lora import LoRA, LoRALayer


class RSLoRALayer(LoRALayer):
    """h = W x + s B A drop(x), A (R, r, d_in), B (R, d_out, r), s = alpha / sqrt(r); B starts at 0."""

    def __init__(self, base: nn.Linear, replicas: int, *, r: int, alpha: float, **options: Any) -> None:
        super().__init__(base, replicas, r=r, alpha=alpha, **options)
        self.scaling = alpha / math.sqrt(r)


@dataclass(kw_only=True)
class RSLoRA(LoRA):
    """Trained: A and B. The scale keeps the size of a trained update from shrinking as r grows.

    Parameters: r * (d_in + d_out)
    Rank: r
    Cost: r * (d_in + d_out)
    Departures: A is drawn as public code draws it (`init_a`), not Gaussian.
    Tested against: stock PEFT with use_rslora, 24 clipped AdamW steps.
    """

    def make_layer(self, base: nn.Linear, replicas: int) -> RSLoRALayer:
        return RSLoRALayer(base, replicas, r=self.r, alpha=self.alpha, lora_dropout=self.lora_dropout, init=self.init_a)
