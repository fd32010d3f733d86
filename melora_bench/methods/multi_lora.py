"""Multi-LoRA: several independent LoRAs on one layer, summed. MPLoRA paper (NeurIPS 2024 workshop FITML), eq. 2."""

from dataclasses import dataclass

from torch import nn

from melora_bench.methods.attach import require_positive
from melora_bench.methods.lora import LoRA, LoRALayer


@dataclass(kw_only=True)
class MultiLoRA(LoRA):
    """h = W x + sum_i s B_i A_i drop(x), i = 1..n, each path of rank r with its own A_i; s = alpha / r.

    Stacking the A_i and the B_i makes this one LoRA of rank n r whose alpha is n times larger, and so it is built.

    Parameters: n * r * (d_in + d_out)
    Rank: n * r
    Cost: n * r * (d_in + d_out)
    Departures: one dropout mask serves all paths.
    Tested against: the literal sum over paths; LoRA of rank n r with alpha n times larger.
    """

    n: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(**{"method.n": self.n})

    def make_layer(self, base: nn.Linear, replicas: int) -> LoRALayer:
        return LoRALayer(
            base,
            replicas,
            r=self.n * self.r,
            alpha=self.n * self.alpha,
            lora_dropout=self.lora_dropout,
            init=self.init_a,
        )
