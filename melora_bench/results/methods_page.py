"""docs/methods.md: every method's facts, counted and measured now, and what we found. It takes torch."""

import inspect
import re
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from melora_bench.adapters.files import adapter_tensors, trainable
from melora_bench.files import ROOT, options, write_text
from melora_bench.methods.base import Method
from melora_bench.results.findings import FINDINGS, SHOWN
from melora_bench.results.tiny import attached, count

PAGE = ROOT / "docs" / "methods.md"
KEYS = ("Parameters", "Rank", "Cost", "Departures", "Tested against")
COLUMNS = "method", "layer", "trained", "parameters", "rank", "cost", "scale", "departures", "tested against"


def document() -> str:
    """The whole page."""
    findings = [(finding.statement, *finding.test.split("::")) for finding in FINDINGS]
    lines = [
        "# Methods",
        "",
        f"Written by `make docs`. Numbers are counted or measured when it runs, for one adapted matrix of {SHOWN[0]} x "
        f"{SHOWN[1]} (RoBERTa-base's query) and the values of configs/method/. x is the layer's input, W its frozen "
        "weight, R the seeds trained side by side. Rank: the bound, then that of an update with random values. Cost: "
        "multiply-adds per token in training, those of W aside.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + " --- |" * len(COLUMNS),
        *map(row, sorted(options("method"))),
        "",
        "## What we found",
        "",
        *(f"* {text} Test: [`{test}`](../tests/methods/{file})." for text, file, test in findings),
    ]
    return "\n".join(lines) + "\n"


def write_docs() -> Path:
    """Write docs/methods.md; returns its path."""
    return write_text(PAGE, document())


def row(name: str) -> str:
    """The line of one method in the page's table."""
    model, method = attached(name, SHOWN)
    layer = next(iter(method.layers.values()), None)
    said, counted = facts(type(method)), measured(name, SHOWN)
    numbers = [f"`{said[key]}`: {counted[key]:,}" if key in said else str(counted.get(key, "")) for key in KEYS[:3]]
    trained = ", ".join(f"{key} {tuple(value.shape[1:])}" for key, value in trainable(model.query).items())
    if not method.packs:  # it trains the backbone itself
        trained, numbers = "W", ["all of it", "any", "0"]
    scale = f"{layer.scaling:.4g}" if layer else ""
    texts = [said[key].rstrip(".") for key in KEYS[3:]]
    cells = [f"`{name}`", f"`{formula(method, layer)}`", trained or "nothing", *numbers, scale, *texts]
    return "| " + " | ".join(cells) + " |"


def facts(cls: type[Method]) -> dict[str, str]:
    """The `Key: value` entries of a method's docstring."""
    text = " ".join((inspect.getdoc(cls) or "").split())
    starts = "|".join(KEYS)
    return {key: value.strip() for key, value in re.findall(rf"\b({starts}): (.*?)(?=\b(?:{starts}): |$)", text)}


def formula(method: Method, layer: nn.Module | None) -> str:
    """The first sentence that begins with `h =`, of the method's docstring or of its layer's.
    Raises ValueError without."""
    for text in (inspect.getdoc(method) or "", inspect.getdoc(type(layer)) or ""):
        match = re.search(r"\bh = .*?(?=\.( |$)|$)", " ".join(text.split()))
        if match:
            return match[0]
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
    counted = {"Parameters": count(model), "Cost": counter.get_total_flops() // 2}
    if layer.form == "function":  # no change of a weight, so no rank
        return counted
    return counted | {"Rank": int(torch.linalg.matrix_rank(layer.delta_weight()[0].detach().double(), rtol=1e-6))}
