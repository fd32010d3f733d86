"""Share-LoRA: one A, n full-size B_i, summed. MPLoRA paper (NeurIPS 2024 workshop FITML), eq. 3 and Table 1."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from melora_bench.methods.attach import require_positive
from melora_bench.methods.lora import LoRA, LoRALayer
from melora_bench.methods.mplora import path_overlap


class ShareLoRALayer(LoRALayer):
    """h = W x + sum_i s B_i A drop_i(x), i = 1..n; A (R, r, d_in) shared, B (R, n, d_out, r); B starts at 0."""

    def __init__(self, base: nn.Linear, replicas: int, *, n: int, path_dropout: str, **options: Any) -> None:
        super().__init__(base, replicas, **options)
        self.B = nn.Parameter(torch.zeros(replicas, n, *self.B.shape[1:]))
        self.path_dropout = path_dropout

    def update(self, x: Tensor) -> Tensor:
        if not self.training or self.path_dropout == "shared" or self.dropout.p == 0:
            return (self.dropout(x) @ self.A.mT * self.scaling) @ self.B.sum(1).mT
        paths = [self.dropout(x) @ self.A.mT * self.scaling for _ in range(self.B.shape[1])]
        return torch.cat(paths, dim=-1) @ self.B.transpose(1, 2).flatten(2).mT  # one product over all n r columns

    def lora_factors(self) -> tuple[Tensor, Tensor]:
        return self.B.sum(1) * self.scaling, self.A


@dataclass(kw_only=True)
class ShareLoRA(LoRA):
    """`orth` > 0 makes it Share-LoRA_orth: + orth * sum over adapted layers of sum_{i<j} ||B_i^T B_j||_F^2.

    Read literally (path_dropout: shared), all B_i start at 0 and get equal gradients, so they stay equal for ever, with
    or without the penalty. Something that the paper does not write must tell them apart; here each path draws its own
    dropout mask (path_dropout: independent).

    Parameters: r * (d_in + n * d_out)
    Rank: r
    Cost: n * r * (d_in + d_out)
    Departures: `path_dropout`, as said.
    Tested against: the tie, with and without the penalty.
    """

    n: int
    orth: float
    path_dropout: str

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(**{"method.n": self.n})
        if self.path_dropout not in ("independent", "shared"):
            raise ValueError(f"method.path_dropout={self.path_dropout!r} is unknown: use independent or shared")
        if self.orth < 0:
            raise ValueError(f"method.orth={self.orth} must not be negative")

    def make_layer(self, base: nn.Linear, replicas: int) -> ShareLoRALayer:
        options = {"r": self.r, "alpha": self.alpha, "lora_dropout": self.lora_dropout, "init": self.init_a}
        return ShareLoRALayer(base, replicas, n=self.n, path_dropout=self.path_dropout, **options)

    def report(self, replica: int) -> dict[str, Any]:
        """The number of paths that differ by more than rounding, in the layer where they are most."""
        matrices = [layer.B[replica].detach().flatten(1) for layer in self.layers_of(ShareLoRALayer).values()]
        rounded = [(paths / paths.abs().max().clamp(min=1e-9) * 1e3).round() for paths in matrices]
        return {"distinct_paths": max(len(torch.unique(paths, dim=0)) for paths in rounded)}

    def penalty(self) -> Tensor | float:
        if self.orth == 0:
            return 0.0
        layers = self.layers_of(ShareLoRALayer).values()
        overlaps = [path_overlap(layer.B.flatten(1, 2), self.n, "squared_frobenius") for layer in layers]
        return self.orth * torch.stack(overlaps).sum(0)
