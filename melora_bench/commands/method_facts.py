"""What docs/methods.md says of a method: counted, measured, and read from its docstring."""

import inspect
import re
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from melora_bench.methods.base import Method
from melora_bench.training.checkpoints import adapter_tensors, trainable
from melora_bench.training.configs import build, compose_run

KEYS = ("Parameters", "Rank", "Cost", "Departures", "Tested against")
COLUMNS = "method", "layer", "trained", "parameters", "rank", "cost", "scale", "departures", "tested against"
SHOWN = 768, 768  # RoBERTa-base's query and value


class Net(nn.Module):
    """Two linear layers to adapt under a head: d_in -> d_out -> d_out -> 2."""

    query: Any  # a linear layer, or the adapter that stands in its place
    value: Any

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.query, self.value, self.head = nn.Linear(d_in, d_out), nn.Linear(d_out, d_out), nn.Linear(d_out, 2)
        self.config = type("Config", (), {"initializer_range": 0.02})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.value(self.query(x).tanh()).tanh())


def attached(name: str, shape: tuple[int, int], *overrides: str, seeds=(0,), steps: int = 100) -> tuple[Net, Method]:
    options = [f"method={name}", *(f"method.{item}" for item in overrides)]
    config = compose_run([*options, "backbone=roberta_base"])[0].method
    model, method = Net(*shape), build(config, "method")
    method.attach(model, "head", list(seeds), total_steps=steps)
    return model, method


def train(name: str, *overrides: str, steps: int = 12, hook: bool = True, lr: float = 0.02) -> tuple[Net, Method, list]:
    """Train on 8 fixed random rows; returns the model, the method and each step's loss."""
    model, method = attached(name, (24, 24), *overrides, steps=steps)
    x = torch.randn(8, 24, generator=torch.Generator().manual_seed(1))
    optimizer, losses = torch.optim.AdamW(trainable(model).values(), lr=lr), []
    torch.manual_seed(2)
    for step in range(steps):
        method.before_forward(step)
        loss = (model(x) - torch.tensor([1.0, -1.0])).square().mean()
        (loss + torch.as_tensor(method.penalty()).sum()).backward()
        optimizer.step()
        if hook:
            method.after_optimizer_step(step)
        optimizer.zero_grad()
        losses.append(loss.item())
    return model, method, losses


def facts(cls: type[Method]) -> dict[str, str]:
    """The `Key: value` entries of a method's docstring."""
    text = " ".join((inspect.getdoc(cls) or "").split())
    starts = "|".join(KEYS)
    return {key: value.strip() for key, value in re.findall(rf"\b({starts}): (.*?)(?=\b(?:{starts}): |$)", text)}


def formula(method: Method, layer: nn.Module | None) -> str:
    """The first sentence that begins with `h =`, of the method's docstring or of its layer's."""
    for text in (inspect.getdoc(method), inspect.getdoc(type(layer))):
        found = re.search(r"\bh = .*?(?=\.( |$)|$)", " ".join((text or "").split()))
        if found:
            return found[0]
    raise ValueError(f"{type(method).__name__} says nowhere what h is")


def measured(name: str, shape: tuple[int, int], *overrides: str) -> dict[str, int]:
    """Trained numbers, rank of the update and multiply-adds per token of one layer, all its tensors random."""
    model, method = attached(name, shape, *overrides)
    layer = model.query
    if layer not in method.layers.values():
        return {"Parameters": 0, "Rank": 0, "Cost": 0}
    source = torch.Generator().manual_seed(3)
    for value in adapter_tensors(model).values():
        value += torch.randn(value.shape, generator=source)
    method.before_forward(0)
    with FlopCounterMode(display=False) as counter:
        layer.train().update(torch.zeros(1, 1, shape[0]))
    rank = torch.linalg.matrix_rank(layer.delta_weight()[0].detach().double(), rtol=1e-6)
    return {"Parameters": count(model), "Rank": int(rank), "Cost": counter.get_total_flops() // 2}


def count(model: Net) -> int:
    """Trained numbers of the first layer."""
    return sum(value.numel() for value in trainable(model.query).values())


def row(name: str) -> str:
    model, method = attached(name, SHOWN)
    layer = next(iter(method.layers.values()), None)
    said, counted = facts(type(method)), measured(name, SHOWN)
    numbers = [f"`{said[key]}`: {counted[key]:,}" if key in said else "0" for key in KEYS[:3]]
    trained = ", ".join(f"{key} {tuple(value.shape[1:])}" for key, value in trainable(model.query).items())
    if not method.packs:  # it trains the backbone itself
        trained, numbers = "W", ["all of it", "any", "0"]
    scale = f"{layer.scaling:.4g}" if layer else ""
    texts = [said[key].rstrip(".") for key in KEYS[3:]]
    return (
        "| "
        + " | ".join([f"`{name}`", f"`{formula(method, layer)}`", trained or "nothing", *numbers, scale, *texts])
        + " |"
    )
