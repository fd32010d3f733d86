"""VeRA: Vector-based Random Matrix Adaptation. Kopiczko et al., ICLR 2024. https://arxiv.org/abs/2310.11454"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from melora_bench.methods.attach import require_positive
from melora_bench.methods.base import Method
from melora_bench.methods.dropout import Dropout
from melora_bench.methods.layers import FactoredLayer
from melora_bench.seeding import generator


class Projections(nn.Module):
    """The frozen pair that all layers share: A (R, r, d_in) and B (R, d_out, r) of the widest layer."""

    A: Tensor
    B: Tensor

    def __init__(self, A: Tensor, B: Tensor) -> None:
        super().__init__()
        self.register_buffer("A", A)
        self.register_buffer("B", B)


class VeRALayer(FactoredLayer):
    """h = W x + diag(b) B diag(d) A drop(x): vectors d (R, r) and b (R, d_out) trained, d from d_initial, b from 0.

    A and B are random, frozen and the same in all layers, which use their first columns and rows.
    """

    shared: Projections

    def __init__(self, base: nn.Linear, replicas: int, *, r: int, lora_dropout: float, d_initial: float) -> None:
        super().__init__(base, replicas)
        self.d = nn.Parameter(torch.full((replicas, r), float(d_initial)))
        self.b = nn.Parameter(torch.zeros(replicas, base.out_features))
        self.dropout = Dropout(lora_dropout)

    def reset_parameters(self, generators: list[torch.Generator]) -> None:
        """Nothing of a layer's own is random."""

    def share(self, projections: Projections) -> None:
        """Take the pair of all layers, which is drawn when the widest layer is known."""
        self.shared = projections

    def sliced(self) -> tuple[Tensor, Tensor]:
        """A (R, r, d_in) and B (R, d_out, r) of this layer."""
        return self.shared.A[:, :, : self.base.in_features], self.shared.B[:, : self.base.out_features]

    def update(self, x: Tensor) -> Tensor:
        A, B = self.sliced()
        return (self.dropout(x) @ A.mT * self.d.unsqueeze(1)) @ (B * self.b.unsqueeze(2)).mT

    def lora_factors(self) -> tuple[Tensor, Tensor]:
        A, B = self.sliced()
        return B * self.b.unsqueeze(2), A * self.d.unsqueeze(2)


@dataclass(kw_only=True)
class VeRA(Method):
    """Trained: d and b.

    Parameters: r + d_out
    Rank: r
    Cost: r * (d_in + d_out)
    Departures: each seed draws its own projections (PEFT: one pair for all), so that the spread includes theirs.
    Tested against: stock PEFT, 24 clipped AdamW steps.
    """

    r: int
    lora_dropout: float
    d_initial: float

    def __post_init__(self) -> None:
        require_positive(**{"method.r": self.r})

    def make_layer(self, base: nn.Linear, replicas: int) -> VeRALayer:
        return VeRALayer(base, replicas, r=self.r, lora_dropout=self.lora_dropout, d_initial=self.d_initial)

    def attach(self, model: nn.Module, head: str | list[str], seeds: list[int], total_steps: int) -> None:
        super().attach(model, head, seeds, total_steps)
        bases = [layer.base for layer in self.layers.values()]
        A = torch.empty(len(seeds), self.r, max(base.in_features for base in bases))
        B = torch.empty(len(seeds), max(base.out_features for base in bases), self.r)
        for k, seed in enumerate(seeds):
            source = generator(seed, "adapter", "projections")
            # Kaiming: U(-sqrt(6 / fan_in), sqrt(6 / fan_in)), as in the paper
            for matrix in (A[k], B[k]):
                bound = math.sqrt(6 / matrix.shape[1])
                matrix.uniform_(-bound, bound, generator=source)
        shared = Projections(A, B)
        for layer in self.layers_of(VeRALayer).values():
            layer.share(shared)
