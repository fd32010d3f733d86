"""AdaLoRA: adaptive budget allocation. Zhang et al., ICLR 2023. https://arxiv.org/abs/2303.10512"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from melora_bench.methods.attach import require_positive
from melora_bench.methods.base import Method
from melora_bench.methods.dropout import Dropout
from melora_bench.methods.layers import FactoredLayer


class AdaLoRALayer(FactoredLayer):
    """h = W x + s P diag(E) Q drop(x): P (R, d_out, r), E (R, r), Q (R, r, d_in), s = alpha / init_r; E starts at 0."""

    def __init__(self, base: nn.Linear, replicas: int, *, r: int, alpha: float, lora_dropout: float) -> None:
        super().__init__(base, replicas)
        self.P = nn.Parameter(torch.empty(replicas, base.out_features, r))
        self.E = nn.Parameter(torch.zeros(replicas, r))
        self.Q = nn.Parameter(torch.empty(replicas, r, base.in_features))
        self.dropout = Dropout(lora_dropout)
        self.scaling = alpha / r

    def reset_parameters(self, generators: list[torch.Generator]) -> None:
        for P, Q, source in zip(self.P.data, self.Q.data, generators, strict=True):
            P.normal_(0.0, 0.02, generator=source)
            Q.normal_(0.0, 0.02, generator=source)

    def update(self, x: Tensor) -> Tensor:
        return ((self.dropout(x) @ self.Q.mT) * (self.E * self.scaling).unsqueeze(1)) @ self.P.mT

    def lora_factors(self) -> tuple[Tensor, Tensor]:
        return self.P * (self.E * self.scaling).unsqueeze(1), self.Q

    def orthogonality(self) -> Tensor:
        """(2, R): ||P^T P - I||_F and ||Q Q^T - I||_F."""
        grams = torch.stack([self.P.mT @ self.P, self.Q @ self.Q.mT])
        norms: Tensor = (grams - torch.eye(self.E.shape[1], device=self.E.device)).flatten(2).norm(dim=2)
        return norms


@dataclass(kw_only=True)
class AdaLoRA(Method):
    """loss = task loss + orth_weight * mean over all P and Q of ||P^T P - I||_F.

    Every entry has a score: the running mean of |w grad| times the running mean of its deviation from that; a triplet's
    is E's plus the means of P's column and Q's row. Each replica's budget of triplets over all layers falls from init_r
    to target_r per layer by a cubic; every `delta_t` steps, counted from 0, the lowest have their E set to 0, and may
    grow again until the cubic's end, after which every step sets the same lowest to 0.

    Parameters: init_r * (d_in + d_out + 1)
    Rank: init_r
    Cost: init_r * (d_in + d_out)
    Departures: the schedule is given as shares of all steps; the official code gives steps per task.
    Tested against: the official algorithm as a literal loop and stock PEFT, 24 AdamW steps with pruning each.
    """

    init_r: int
    target_r: int
    alpha: float
    lora_dropout: float
    orth_weight: float
    beta1: float
    beta2: float
    init_warmup: float
    final_warmup: float
    delta_t: int
    means: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    spreads: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        require_positive(**{f"method.{key}": getattr(self, key) for key in ("init_r", "target_r", "alpha", "delta_t")})
        if self.target_r >= self.init_r:
            raise ValueError(f"method.target_r={self.target_r} is not below init_r={self.init_r}: nothing to prune")

    def make_layer(self, base: nn.Linear, replicas: int) -> AdaLoRALayer:
        return AdaLoRALayer(base, replicas, r=self.init_r, alpha=self.alpha, lora_dropout=self.lora_dropout)

    def attach(self, model: nn.Module, head: str | list[str], seeds: list[int], total_steps: int) -> None:
        self.first, self.last = round(self.init_warmup * total_steps), round((1 - self.final_warmup) * total_steps)
        if (self.last - 1) // self.delta_t <= self.first // self.delta_t:
            raise ValueError(
                f"AdaLoRA would never prune: no multiple of method.delta_t={self.delta_t} lies between the "
                f"steps {self.first} and {self.last} of {total_steps}; lower delta_t or train longer"
            )
        if self.last + 1 >= total_steps:
            raise ValueError(
                f"AdaLoRA would never reach its budget in {total_steps} steps: raise method.final_warmup="
                f"{self.final_warmup} or train longer"
            )
        super().attach(model, head, seeds, total_steps)

    def penalty(self) -> Tensor:
        layers = self.layers_of(AdaLoRALayer).values()
        return self.orth_weight * torch.cat([layer.orthogonality() for layer in layers]).mean(0)

    @torch.no_grad()
    def after_optimizer_step(self, step: int, optimizer: Optimizer) -> None:
        if step < self.last:
            self._measure()
        if step > self.last or (step > self.first and step % self.delta_t == 0):
            left, layers = max(0.0, 1 - (step - self.first) / (self.last - self.first)), self.layers_of(AdaLoRALayer)
            budget = self.target_r * len(layers) + (self.init_r - self.target_r) * len(layers) * left**3
            for name, mask in self._lowest(int(budget)).items():
                layers[name].E.masked_fill_(mask, 0.0)

    @property
    def selectable_from(self) -> int:
        # The step after the schedule's last is the first that is sure to leave no more than the budget.
        return self.last + 2

    def report(self, replica: int) -> dict[str, Any]:
        layers = self.layers_of(AdaLoRALayer)
        return {"ranks": {name: int(layer.E[replica].count_nonzero()) for name, layer in layers.items()}}

    def state_dict(self) -> dict[str, Any]:
        return {"means": self.means, "spreads": self.spreads}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = next(iter(self.layers_of(AdaLoRALayer).values())).E.device
        for key, tensors in state.items():
            setattr(self, key, {name: value.to(device) for name, value in tensors.items()})

    def _measure(self) -> None:
        weights = {f"{name}.{part}": getattr(layer, part) for name, layer in self.layers.items() for part in "PEQ"}
        for name, weight in weights.items():
            importance = (weight * weight.grad).abs()
            mean = self.means.setdefault(name, torch.zeros_like(weight)).lerp_(importance, 1 - self.beta1)
            self.spreads.setdefault(name, torch.zeros_like(weight)).lerp_((importance - mean).abs(), 1 - self.beta2)

    def _lowest(self, budget: int) -> dict[str, Tensor]:
        """(R, r) per layer: the triplets outside the budget."""
        score = {name: mean * self.spreads[name] for name, mean in self.means.items()}
        triplets = {n: score[f"{n}.E"] + score[f"{n}.P"].mean(1) + score[f"{n}.Q"].mean(2) for n in self.layers}
        every = torch.cat(list(triplets.values()), dim=1)  # (R, layers * r)
        threshold = every.kthvalue(every.shape[1] - budget).values.unsqueeze(1)
        return {name: triplet <= threshold for name, triplet in triplets.items()}
