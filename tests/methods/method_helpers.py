"""What the tests of several methods share: the methods' names, the tiny model under a method, layers of any shape,
data."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import composed
from hydra.utils import get_class, instantiate
from torch import nn
from transformers import AutoModelForSequenceClassification

from melora_bench.adapters.files import adapter_tensors
from melora_bench.files import ROOT
from melora_bench.methods.base import Method
from melora_bench.methods.layers import AdapterLayer
from melora_bench.seeding import generator

METHODS = sorted(path.stem for path in (ROOT / "configs" / "method").glob("*.yaml"))
# Those that train several seeds side by side.
PACKING = [name for name in METHODS if get_class(composed([f"method={name}"]).method._target_).packs]
# For tests that make whole runs of every method: these in `make test`, the others in `make test-slow`.
EXAMPLES = ("lora", "melora")
PENALTY = {"penalty_weight": 0.1, "norm": "squared_frobenius", "reduce_layers": "sum"}
COMMON = {"version": 1, "target_modules": ["query"], "alpha": 16, "lora_dropout": 0.0, "init_a": "kaiming_uniform"}
STEPS = 24


def examples_first(names: list[str]) -> list:
    """The names as parameters of a test, slow but for EXAMPLES."""
    return [name if name in EXAMPLES else pytest.param(name, marks=pytest.mark.slow) for name in names]


def seeds_of(name: str) -> list[int]:
    """Two seeds, or one for a method that cannot train two side by side."""
    return [3, 5] if name in PACKING else [5]


def build(folder: Path, name: str, seeds: list[int] | None = None, *overrides: str) -> tuple[nn.Module, Method]:
    """The tiny model with a method attached, dropout off."""
    cfg = composed(["backbone=roberta_base", f"method={name}", *overrides])
    method = instantiate(cfg.method, _convert_="all")
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    method.attach(model, "classifier", seeds or seeds_of(name), total_steps=100)
    return model.eval(), method


def inputs(replicas: int = 2, rows: int = 3) -> dict[str, torch.Tensor]:
    """The same rows of 9 tokens for every replica, (replicas * rows, 9)."""
    ids = torch.randint(4, 20, (rows, 9), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids.repeat(replicas, 1), "attention_mask": torch.ones(rows * replicas, 9, dtype=torch.long)}


def disturb(model: nn.Module) -> None:
    """Move every tensor that a run could change away from its initial value."""
    source = torch.Generator().manual_seed(1)
    for value in adapter_tensors(model).values():
        value += 0.3 * torch.randn(value.shape, generator=source)


def batches() -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
    """STEPS batches of 6 rows: the model's inputs (6, 9) and the labels (6,)."""
    source = torch.Generator().manual_seed(7)
    for _ in range(STEPS):
        ids = torch.randint(4, 20, (6, 9), generator=source)
        yield {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, torch.randint(0, 2, (6,), generator=source)


def train(
    model: nn.Module, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer | None = None
) -> list[float]:
    """STEPS clipped steps on `batches`, of AdamW unless given; returns the losses."""
    optimizer = optimizer or torch.optim.AdamW(parameters, lr=5e-3, weight_decay=0.1)
    losses = []
    for batch, labels in batches():
        loss = torch.nn.functional.cross_entropy(model(**batch).logits, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def layer_of(method: Method, d_in: int, d_out: int, replicas: int = 2, device: str = "cpu") -> AdapterLayer:
    """The layer that a method makes of d_in x d_out weights; on a CPU with initial values, and a B that is not 0."""
    with torch.device(device):
        layer = method.make_layer(nn.Linear(d_in, d_out), replicas)
    if device == "cpu":
        layer.reset_parameters([generator(seed, "adapter") for seed in range(replicas)])
        layer.B.data.normal_(generator=torch.Generator().manual_seed(0))
    return layer


def trained_numbers(layer: AdapterLayer) -> int:
    """How many numbers a layer trains beside its base."""
    return sum(
        value.numel()
        for name, value in layer.named_parameters()
        if value.requires_grad and not name.startswith("base.")
    )
