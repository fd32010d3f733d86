"""MPLoRA: Orthogonal Multi-Path Low-Rank Adaptation. Shi, Wang, Li and Jiang, NeurIPS 2024 workshop FITML (eq. 6-8)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from melora_bench.methods.attach import require_positive
from melora_bench.methods.lora import LoRA, LoRALayer


def path_overlap(B: Tensor, n: int, norm: str) -> Tensor:
    """(R,): sum over path pairs i < j of |B_i^T B_j|, B (R, d_out, r) cut into n paths (R, d_out / n, r).

    norm: squared_frobenius (eq. 7, as printed) or abs_sum (the sum of absolute entries).
    """
    paths = B.unflatten(1, (n, -1))
    stacked = paths.permute(0, 2, 1, 3).flatten(2)  # (R, d_out / n, n r)
    gram = (stacked.mT @ stacked).unflatten(2, (n, -1)).unflatten(1, (n, -1))  # (R, n, r, n, r): every B_i^T B_j
    size = gram.square() if norm == "squared_frobenius" else gram.abs()
    pairs: Tensor = size.sum((2, 4))  # (R, n, n)
    return pairs.triu(diagonal=1).sum((1, 2))


@dataclass(kw_only=True)
class MPLoRA(LoRA):
    """h = W x + s concat_i (B_i A drop(x)), i = 1..n, A (r, d_in) shared, B_i (d_out / n, r); s = alpha / r.

    loss = task loss + penalty_weight * sum over adapted layers of sum_{i<j} ||B_i^T B_j||_F^2.

    The concatenation of B_i A is B A with B the stacked B_i: n only partitions the penalty, and at penalty_weight 0
    MPLoRA is LoRA. The penalty is quartic in B and B starts at 0; the record's `penalty` beside `train_loss` shows
    whether it ever matters.

    Parameters: r * (d_in + d_out)
    Rank: r
    Cost: r * (d_in + d_out)
    Departures: B_i is printed transposed; only this shape makes eq. 7 valid.
    Tested against: LoRA at lambda = 0, to the last bit; the penalty as two literal loops.
    """

    n: int
    penalty_weight: float
    norm: str
    reduce_layers: str

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(**{"method.n": self.n})
        if self.penalty_weight < 0:
            raise ValueError(f"method.penalty_weight={self.penalty_weight} must not be negative")
        if self.norm not in ("squared_frobenius", "abs_sum"):
            raise ValueError(f"method.norm={self.norm!r} is unknown: use squared_frobenius or abs_sum")
        if self.reduce_layers not in ("sum", "mean"):
            raise ValueError(f"method.reduce_layers={self.reduce_layers!r} is unknown: use sum or mean")

    def make_layer(self, base: nn.Linear, replicas: int) -> LoRALayer:
        if base.out_features % self.n:
            raise ValueError(f"method.n={self.n} must divide d_out={base.out_features} of every adapted layer")
        return super().make_layer(base, replicas)

    def penalty(self) -> Tensor:
        layers = self.layers_of(LoRALayer).values()
        overlap = torch.stack([path_overlap(layer.B, self.n, self.norm) for layer in layers])
        total = overlap.sum(0) if self.reduce_layers == "sum" else overlap.mean(0)
        return self.penalty_weight * total
