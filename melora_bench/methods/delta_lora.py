"""Delta-LoRA: fine-tuning with the delta of low-rank matrices. Zi et al., 2023. https://arxiv.org/abs/2309.02411"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from melora_bench.methods.lora import LoRA, LoRALayer


class DeltaLoRALayer(LoRALayer):
    """h = W_t x + s B A x, where in each step t > K W moves with B A: W_{t+1} = W_t + lambda s (B' A' - B A).

    The sum telescopes, W_t - W = lambda s (B A - B_K A_K), and so it is computed: A_K and B_K are kept as they are
    before the first move, W never changes, and no gradient reaches A and B through the moved part. A, A_K (R, r, d_in);
    B, B_K (R, d_out, r); `moved` (R,) is 0 until then, lambda after. The update is of rank <= 2r, not of the high rank
    that the paper says.
    """

    A_K: Tensor
    B_K: Tensor
    moved: Tensor

    def __init__(self, base: nn.Linear, replicas: int, **options: Any) -> None:
        super().__init__(base, replicas, **options)
        self.register_buffer("A_K", torch.zeros_like(self.A))
        self.register_buffer("B_K", torch.zeros_like(self.B))
        self.register_buffer("moved", torch.zeros(replicas))

    def start(self, lambda_: float) -> None:
        """W moves from this step on; where it moved already, in the run that this one began from, it just goes on."""
        fresh = self.moved[:, None, None] == 0
        self.A_K.copy_(torch.where(fresh, self.A.detach(), self.A_K))
        self.B_K.copy_(torch.where(fresh, self.B.detach(), self.B_K))
        self.moved.copy_(torch.where(self.moved == 0, lambda_, self.moved))

    def update(self, x: Tensor) -> Tensor:
        moved = self.moved[:, None, None]
        A = torch.cat([self.A, self.A.detach(), self.A_K], dim=1)
        B = torch.cat([self.B, moved * self.B.detach(), -moved * self.B_K], dim=2)
        return (x @ A.mT * self.scaling) @ B.mT

    def lora_factors(self) -> tuple[Tensor, Tensor]:
        moved = self.moved[:, None, None]
        B = torch.cat([self.B * (1 + moved), -moved * self.B_K], dim=2) * self.scaling
        return B, torch.cat([self.A, self.A_K], dim=1)


@dataclass(kw_only=True)
class DeltaLoRA(LoRA):
    """Steps count from 0, as in the paper's Algorithm 1: step K + 1 is the first whose change of B A moves W.

    No dropout on the low-rank path, as the paper demands: with it, the delta would not be that of B A.

    Parameters: r * (d_in + d_out)
    Rank: 2 * r
    Cost: 3 * r * (d_in + d_out)
    Departures: the telescoped form instead of a W that moves.
    Tested against: the literal loop with a moving W.
    """

    delta_ratio: float
    start_step: int | None
    warmup_ratio: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora_dropout != 0:
            raise ValueError(
                f"method.lora_dropout={self.lora_dropout} must be 0: Delta-LoRA drops nothing on that path"
            )
        if self.start_step is not None and (type(self.start_step) is not int or self.start_step < 0):
            raise ValueError(f"method.start_step={self.start_step} must be a whole number from 0 on, or null")
        if not 0 <= self.delta_ratio < math.inf:
            raise ValueError(f"method.delta_ratio={self.delta_ratio} must be a number from 0 on")

    def make_layer(self, base: nn.Linear, replicas: int) -> DeltaLoRALayer:
        return DeltaLoRALayer(base, replicas, r=self.r, alpha=self.alpha, lora_dropout=0.0, init=self.init_a)

    def attach(self, model: nn.Module, head: str | list[str], seeds: list[int], total_steps: int) -> None:
        self.start_at = math.ceil(self.warmup_ratio * total_steps) if self.start_step is None else self.start_step
        if self.start_at + 1 >= total_steps:
            raise ValueError(
                f"method.start_step={self.start_at} leaves W still in all {total_steps} steps: W moves in the steps "
                "after it; start earlier or train longer"
            )
        super().attach(model, head, seeds, total_steps)

    def before_forward(self, step: int) -> None:
        if step == self.start_at + 1:
            for layer in self.layers_of(DeltaLoRALayer).values():
                layer.start(self.delta_ratio)

    @property
    def selectable_from(self) -> int:
        # W has moved once.
        return self.start_at + 2

    def report(self, replica: int) -> dict[str, Any]:
        return {"start_step": self.start_at}
