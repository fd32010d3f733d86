"""LoRA: Low-Rank Adaptation of Large Language Models. Hu et al., 2021. https://arxiv.org/abs/2106.09685"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from melora_bench.methods.attach import init_a, require_positive
from melora_bench.methods.base import Method
from melora_bench.methods.dropout import Dropout
from melora_bench.methods.layers import FactoredLayer


class LoRALayer(FactoredLayer):
    """h = W x + s B A drop(x), A (R, r, d_in), B (R, d_out, r), s = alpha / r; B starts at 0."""

    def __init__(self, base: nn.Linear, replicas: int, *, r: int, alpha: float, lora_dropout: float, init: str) -> None:
        super().__init__(base, replicas)
        self.A = nn.Parameter(torch.empty(replicas, r, base.in_features))
        self.B = nn.Parameter(torch.zeros(replicas, base.out_features, r))
        self.dropout = Dropout(lora_dropout)
        self.scaling = alpha / r
        self.init = init_a(init)

    def reset_parameters(self, generators: list[torch.Generator]) -> None:
        for A, source in zip(self.A.data, generators, strict=True):
            self.init(A, source)

    def lora_factors(self) -> tuple[Tensor, Tensor]:
        return self.B * self.scaling, self.A

    def load_lora_factors(self, replica: int, B: Tensor, A: Tensor) -> None:
        shapes = self.B[replica].shape, self.A[replica].shape
        if (B.shape, A.shape) != shapes:
            given, wanted = (" and ".join(str(tuple(shape)) for shape in pair) for pair in ((B.shape, A.shape), shapes))
            raise ValueError(f"factors of shapes {given} do not fit, this method's are {wanted}")
        self.A.data[replica], self.B.data[replica] = A, B / self.scaling

    def update(self, x: Tensor) -> Tensor:
        return (self.dropout(x) @ self.A.mT * self.scaling) @ self.B.mT


@dataclass(kw_only=True)
class LoRA(Method):
    """Trained: A and B.

    Parameters: r * (d_in + d_out)
    Rank: r
    Cost: r * (d_in + d_out)
    Departures: A is drawn as public code draws it (`init_a`), not Gaussian.
    Tested against: stock PEFT, 24 clipped AdamW steps.
    """

    r: int
    alpha: float
    lora_dropout: float
    init_a: str

    def __post_init__(self) -> None:
        require_positive(**{"method.r": self.r, "method.alpha": self.alpha})

    def make_layer(self, base: nn.Linear, replicas: int) -> LoRALayer:
        return LoRALayer(base, replicas, r=self.r, alpha=self.alpha, lora_dropout=self.lora_dropout, init=self.init_a)
