"""A tiny model with a method attached, on which a method's facts and our findings are measured. It takes torch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from melora_bench.adapters.files import trainable
from melora_bench.external.fields import build
from melora_bench.methods.base import Method
from melora_bench.training.configs import compose_run


class Net(nn.Module):
    """Two linear layers to adapt under a head: d_in -> d_out -> d_out -> 2."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.query, self.value, self.head = nn.Linear(d_in, d_out), nn.Linear(d_out, d_out), nn.Linear(d_out, 2)
        self.config = type("Config", (), {"initializer_range": 0.02})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.value(self.query(x).tanh()).tanh())
        return out


def attached(
    name: str, shape: tuple[int, int], *overrides: str, seeds: Sequence[int] = (0,), steps: int = 100
) -> tuple[Any, Method]:
    """A Net of (d_in, d_out) with a method attached, at the values of configs/method but for the overrides."""
    options = [f"method={name}", *(f"method.{item}" for item in overrides)]
    config = compose_run([*options, "backbone=roberta_base"])[0].method
    model, method = Net(*shape), build(config, "method")
    method.attach(model, "head", list(seeds), total_steps=steps)
    return model, method


def train(
    name: str, *overrides: str, steps: int = 12, hook: bool = True, lr: float = 0.02
) -> tuple[Any, Method, list[float]]:
    """Train on 8 fixed random rows; returns the model, the method and each step's loss. Without `hook` nobody calls the
    method after the optimizer's step."""
    model, method = attached(name, (24, 24), *overrides, steps=steps)
    x = torch.randn(8, 24, generator=torch.Generator().manual_seed(1))
    optimizer, losses = torch.optim.AdamW(trainable(model).values(), lr=lr), []
    with torch.random.fork_rng():
        torch.manual_seed(2)
        for step in range(steps):
            method.before_forward(step)
            loss = (model(x) - torch.tensor([1.0, -1.0])).square().mean()
            (loss + torch.as_tensor(method.penalty()).sum()).backward()
            optimizer.step()
            if hook:
                method.after_optimizer_step(step, optimizer)
            optimizer.zero_grad()
            losses.append(loss.item())
    return model, method, losses


def count(model: Any) -> int:
    """Trained numbers of the first layer."""
    return sum(value.numel() for value in trainable(model.query).values())
