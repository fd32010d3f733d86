"""MELoRA: Mini-Ensemble Low-Rank Adapters. Ren et al., ACL 2024. https://arxiv.org/abs/2402.17263 (eq. 5)"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from melora_bench.methods.attach import init_a, require_positive
from melora_bench.methods.base import Method
from melora_bench.methods.dropout import Dropout
from melora_bench.methods.layers import FactoredLayer


class MELoRALayer(FactoredLayer):
    """h = W x + concat_i (s B_i A_i drop(x)_i), i = 1..n, x_i the i-th slice of x; s = alpha / r.

    A (R, n, r, d_in / n), B (R, n, d_out / n, r); B starts at 0. The update is block diagonal, of rank <= n r (the
    equivalent rank), with r (d_in + d_out) parameters whatever n is.
    """

    def __init__(
        self, base: nn.Linear, replicas: int, *, r: int, n: int, alpha: float, lora_dropout: float, init: str
    ) -> None:
        super().__init__(base, replicas)
        d_in, d_out = base.in_features, base.out_features
        if d_in % n or d_out % n:
            raise ValueError(f"method.n={n} must divide d_in={d_in} and d_out={d_out} of every adapted layer")
        self.A = nn.Parameter(torch.empty(replicas, n, r, d_in // n))
        self.B = nn.Parameter(torch.zeros(replicas, n, d_out // n, r))
        self.dropout = Dropout(lora_dropout)
        self.scaling = alpha / r
        self.init = init_a(init)

    def reset_parameters(self, generators: list[torch.Generator]) -> None:
        for A, source in zip(self.A.data, generators, strict=True):
            self.init(A, source)

    def update(self, x: Tensor) -> Tensor:
        R, n = self.A.shape[:2]
        # (R, n, T, d_in / n), in order where dropout writes it
        slices = self.dropout(x.unflatten(-1, (n, -1)).transpose(1, 2))
        blocks = (slices @ self.A.mT * self.scaling) @ self.B.mT  # (R, n, T, d_out / n)
        return blocks.transpose(1, 2).reshape(R, x.shape[1], -1)

    def lora_factors(self) -> tuple[Tensor, Tensor]:
        B = torch.stack([torch.block_diag(*blocks) for blocks in self.B * self.scaling])
        A = torch.stack([torch.block_diag(*blocks) for blocks in self.A])
        return B, A


@dataclass(kw_only=True)
class MELoRA(Method):
    """`r` is the rank of one mini LoRA, as in the paper's tables; the equivalent rank is n r.

    Parameters: r * (d_in + d_out)
    Rank: n * r
    Cost: r * (d_in + d_out)
    Departures: one dropout mask on x serves all slices, the same law as one per slice. The scale is alpha / r with the
    mini rank, as in the official code, so settings of equal equivalent rank differ in scale.
    Tested against: the block-diagonal product over random shapes; LoRA at n = 1, to the last bit.
    """

    r: int
    n: int
    alpha: float
    lora_dropout: float
    init_a: str

    def __post_init__(self) -> None:
        require_positive(**{"method.r": self.r, "method.n": self.n, "method.alpha": self.alpha})

    def make_layer(self, base: nn.Linear, replicas: int) -> MELoRALayer:
        return MELoRALayer(
            base, replicas, r=self.r, n=self.n, alpha=self.alpha, lora_dropout=self.lora_dropout, init=self.init_a
        )

    def report(self, replica: int) -> dict[str, Any]:
        return {"equivalent_rank": self.n * self.r, "scaling": self.alpha / self.r}
