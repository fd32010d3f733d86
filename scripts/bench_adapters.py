"""One linear layer, forward and backward: what each method's adapter costs over the frozen layer.

`python scripts/bench_adapters.py [--tokens 2048] [--width 768] [--repeats 20] [--seeds 1]` writes
results/bench/adapters_<cpu or gpu>.json and .md. The variants are interleaved; medians are shown. Compare ratios of one
run only.
"""

import argparse
import json
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from melora_bench.external.fields import build
from melora_bench.files import ROOT, write_text
from melora_bench.records.provenance import device_name, git_state
from melora_bench.training.configs import compose_run

VARIANTS = {
    "LoRA": ["method=lora"],
    "LoRA-FA": ["method=lora_fa"],
    "VeRA": ["method=vera"],
    "DyLoRA": ["method=dylora"],
    "AdaLoRA": ["method=adalora"],
    "Delta-LoRA": ["method=delta_lora"],
    "Multi-LoRA n=2": ["method=multi_lora"],
    "Share-LoRA n=2": ["method=share_lora"],
    "MPLoRA n=8": ["method=mplora", "method.n=8"],
    **{f"MELoRA n={n}": ["method=melora", f"method.n={n}"] for n in (2, 8, 64)},
}
DROPOUTS = (0.0, 0.05)
BENCH = ROOT / "results" / "bench"


class Model(nn.Module):
    """What a method needs to attach itself to one layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.config = argparse.Namespace(initializer_range=0.02)


class LiteralMELoRA(nn.Module):
    """MELoRA as its formula reads, one slice after another; what a plain implementation does."""

    def __init__(self, base: nn.Linear, n: int, r: int, dropout: float) -> None:
        super().__init__()
        width = base.in_features // n
        self.base, self.dropout = base, nn.Dropout(dropout)
        self.A = nn.ParameterList(torch.randn(r, width) for _ in range(n))
        self.B = nn.ParameterList(torch.zeros(width, r) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        slices = x.chunk(len(self.A), dim=-1)
        parts = [self.dropout(part) @ A.T @ B.T for part, A, B in zip(slices, self.A, self.B, strict=True)]
        return self.base(x) + 2 * torch.cat(parts, dim=-1)


def layers(width: int, seeds: int, device: torch.device) -> dict[str, nn.Module]:
    """Every variant by name; the frozen layer first."""
    torch.manual_seed(0)
    frozen = nn.Linear(width, width, device=device).requires_grad_(False)
    found: dict[str, nn.Module] = {"frozen": frozen}
    for dropout in DROPOUTS:
        for name, overrides in VARIANTS.items():
            if dropout and name == "Delta-LoRA":
                continue  # it has none
            options = [*overrides, "backbone=minilm", "method.target_modules=[query]", f"method.lora_dropout={dropout}"]
            config = compose_run(options)[0].method
            model, method = Model(width), build(config, "method")
            method.attach(model, "", list(range(seeds)), total_steps=100)
            model.train().to(device)
            method.before_forward(0)  # what it draws lies on the layer's device
            found[f"{name}, dropout {dropout:g}"] = model.query
        if seeds == 1:
            found[f"MELoRA n=8 slice by slice, dropout {dropout:g}"] = LiteralMELoRA(frozen, 8, 8, dropout).to(device)
    return found


def once(layer: nn.Module, x: Tensor, grad: Tensor, autocast) -> tuple[float, int | None]:
    """Seconds of one forward and backward pass; on CUDA the mean of 20 in a row, and the peak of their memory beyond
    what was there."""
    cuda = x.is_cuda
    passes = 20 if cuda else 1
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    start = time.perf_counter()
    for _ in range(passes):
        x = x.detach().requires_grad_()
        with autocast:
            out = layer(x)
        out.backward(grad.to(out.dtype))
        layer.zero_grad()
    if cuda:
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / passes
    return seconds, torch.cuda.max_memory_allocated() - before if cuda else None


def write(name: str, settings: dict, rows: dict[str, dict], lines: list[str]) -> None:
    """<to>/<name>_<cpu or gpu>.json and .md: what was measured, with which settings, on what; prints the table."""
    cuda = torch.cuda.is_available()
    versions = {name: version(name) for name in ("torch", "transformers", "accelerate", "peft")}
    about = {"device": device_name(cuda), **versions, **git_state()}
    stem = Path(settings["to"]) / f"{name}_{'gpu' if cuda else 'cpu'}"
    settings = {key: value for key, value in settings.items() if key not in ("data", "to")}  # places on this machine
    write_text(
        stem.with_suffix(".json"), json.dumps({"about": about, "settings": settings, "rows": rows}, indent=1) + "\n"
    )
    commit = f"{about['commit'][:10]}{' with local changes' * bool(about['dirty'])}" if about["commit"] else "unknown"
    used = ", ".join(f"{name} {number}" for name, number in versions.items())
    text = "\n".join([*lines, "", f"{about['device']}, {used}, commit {commit}"]) + "\n"
    write_text(stem.with_suffix(".md"), text)
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("tokens", 2048), ("width", 768), ("repeats", 20), ("seeds", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--to", default=BENCH, help="the folder to write to")
    options = parser.parse_args()
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    found = layers(options.width, options.seeds, device)
    x, grad = (torch.randn(options.seeds, options.tokens, options.width, device=device) for _ in range(2))
    rows: dict[str, dict] = {name: {} for name in found}
    for precision in ("fp32", "bf16"):
        seconds: dict[str, list[float]] = {name: [] for name in found}
        for repeat in range(options.repeats + 2):  # the first two warm up
            for name, layer in found.items():
                autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
                taken, memory = once(layer, x, grad, autocast)
                if repeat > 1:
                    seconds[name].append(taken)
                    rows[name][f"{precision}_memory"] = memory
        for name, times in seconds.items():
            rows[name][f"{precision}_ms"] = 1000 * statistics.median(times)
    lines = [
        f"{options.seeds} x {options.tokens} tokens through one {options.width} x {options.width} layer, "
        f"forward and backward, "
        f"median of {options.repeats}",
        "",
        "| layer | fp32 ms | x frozen | bf16 ms | x frozen |" + (" fp32 MB | bf16 MB |" if cuda else ""),
        "| --- |" + " ---: |" * (6 if cuda else 4),
    ]
    for name, row in rows.items():
        cells = []
        for precision in ("fp32", "bf16"):
            ms = row[f"{precision}_ms"]
            cells += [f"{ms:.3g}", f"{ms / rows['frozen'][f'{precision}_ms']:.2f}"]
        cells += [f"{row[f'{precision}_memory'] / 1e6:.0f}" for precision in ("fp32", "bf16")] if cuda else []
        lines.append(f"| {name} | {' | '.join(cells)} |")
    write("adapters", vars(options), rows, lines)


if __name__ == "__main__":
    main()
