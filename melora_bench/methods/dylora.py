"""DyLoRA: search-free low-rank adaptation. Valipour et al., EACL 2023. https://arxiv.org/abs/2210.07558"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from melora_bench.methods.lora import LoRA, LoRALayer
from melora_bench.seeding import generator


class DyLoRALayer(LoRALayer):
    """h = W x + (alpha / b) B[:, :b] A[:b] drop(x), A (R, r, d_in), B (R, d_out, r).

    In training b (R,) is each replica's drawn rank; frozen: only row b of A and column b of B get a gradient.
    In evaluation b is r, unless another rank is being scored.
    """

    drawn: Tensor | None = None  # (R,)
    scored: Tensor | None = None  # (R,); None: r

    def __init__(self, base: nn.Linear, replicas: int, *, frozen: bool, **options: Any) -> None:
        super().__init__(base, replicas, **options)
        self.frozen = frozen

    def draw(self, ranks: Tensor) -> None:
        """Train at these ranks (R,) from here on."""
        self.drawn = ranks

    def score(self, ranks: Tensor | None) -> None:
        """Evaluate at these ranks (R,) from here on; None: at r."""
        self.scored = ranks

    def update(self, x: Tensor) -> Tensor:
        b = self.drawn if self.training else self.scored
        if b is None:
            return super().update(x)
        index, b = torch.arange(1, self.A.shape[1] + 1, device=x.device), b.unsqueeze(1).to(self.A.dtype)
        scale = torch.where(index <= b, self.scaling * self.A.shape[1] / b, 0.0)  # (R, r): alpha / b up to b, then 0
        A: Tensor = self.A
        B: Tensor = self.B
        if self.frozen:
            moving = (index == b).unsqueeze(2)
            A, B = torch.where(moving, A, A.detach()), torch.where(moving.mT, B, B.detach())
        return (self.dropout(x) @ A.mT * scale.unsqueeze(1)) @ B.mT


@dataclass(kw_only=True)
class DyLoRA(LoRA):
    """One rank b per optimizer step and replica, uniform in 1..r, the same in all layers.

    With `frozen` (the official code) the rows and columns below b get no gradient; AdamW still moves them by momentum
    and weight decay, as it does there. After training every rank 1..r is scored; the record's last report has them.

    Parameters: r * (d_in + d_out)
    Rank: r
    Cost: r * (d_in + d_out)
    Departures: b is drawn from (seed, step) alone, so that resuming needs no state.
    Tested against: the literal truncated product; which gradients are zero; the law of b.
    """

    frozen: bool
    seeds: list[int] = field(default_factory=list, init=False, repr=False)
    by_rank: dict[int, list[dict[str, Any] | None]] = field(default_factory=dict, init=False, repr=False)

    def make_layer(self, base: nn.Linear, replicas: int) -> DyLoRALayer:
        options = {"r": self.r, "alpha": self.alpha, "lora_dropout": self.lora_dropout, "init": self.init_a}
        return DyLoRALayer(base, replicas, frozen=self.frozen, **options)

    def attach(self, model: nn.Module, head: str | list[str], seeds: list[int], total_steps: int) -> None:
        super().attach(model, head, seeds, total_steps)
        self.seeds = seeds

    def before_forward(self, step: int) -> None:
        sources = [generator(seed, "dylora", step) for seed in self.seeds]
        ranks = self._on_device([int(torch.randint(1, self.r + 1, (), generator=source)) for source in sources])
        for layer in self.layers_of(DyLoRALayer).values():
            layer.draw(ranks)

    def after_training(self, evaluate: Callable[[], list[dict[str, Any] | None]]) -> None:
        for rank in range(1, self.r + 1):
            self._score(self._on_device([rank] * len(self.seeds)))
            self.by_rank[rank] = evaluate()
        self._score(None)

    def report(self, replica: int) -> dict[str, Any]:
        scores = {rank: entries[replica] for rank, entries in self.by_rank.items()}
        return {"metrics_by_rank": {rank: one and one["metrics"] for rank, one in scores.items()}} if scores else {}

    def _score(self, ranks: Tensor | None) -> None:
        for layer in self.layers_of(DyLoRALayer).values():
            layer.score(ranks)

    def _on_device(self, ranks: list[int]) -> Tensor:
        device = next(iter(self.layers_of(DyLoRALayer).values())).A.device
        return torch.tensor(ranks).to(device, non_blocking=True)
