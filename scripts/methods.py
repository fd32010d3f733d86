"""Write docs/methods.md: every method's facts, counted and measured now, and what we found: `python scripts/methods.py`."""

import argparse
import inspect
import re

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from melora_bench.adapters.files import adapter_tensors, trainable
from melora_bench.external.fields import build
from melora_bench.files import ROOT, write_text
from melora_bench.methods.base import Method
from melora_bench.methods.mplora import path_overlap
from melora_bench.training.configs import compose_run

KEYS = ("Parameters", "Rank", "Cost", "Departures", "Tested against")
COLUMNS = "method", "layer", "trained", "parameters", "rank", "cost", "scale", "departures", "tested against"
SHOWN = 768, 768  # RoBERTa-base's query and value


class Net(nn.Module):
    """Two linear layers to adapt under a head: d_in -> d_out -> d_out -> 2."""

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
            method.after_optimizer_step(step, optimizer)
        optimizer.zero_grad()
        losses.append(loss.item())
    return model, method, losses


def facts(cls: type[Method]) -> dict[str, str]:
    """The `Key: value` entries of a method's docstring."""
    text = " ".join(inspect.getdoc(cls).split())
    starts = "|".join(KEYS)
    return {key: value.strip() for key, value in re.findall(rf"\b({starts}): (.*?)(?=\b(?:{starts}): |$)", text)}


def formula(method: Method, layer: nn.Module | None) -> str:
    """The first sentence that begins with `h =`, of the method's docstring or of its layer's."""
    for text in (inspect.getdoc(method), inspect.getdoc(type(layer)) or ""):
        found = re.search(r"\bh = .*?(?=\.( |$)|$)", " ".join(text.split()))
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
    counted = {"Parameters": count(model), "Cost": counter.get_total_flops() // 2}
    if layer.form == "function":  # no change of a weight, so no rank
        return counted
    return counted | {"Rank": int(torch.linalg.matrix_rank(layer.delta_weight()[0].detach().double(), rtol=1e-6))}


def count(model: Net) -> int:
    """Trained numbers of the first layer."""
    return sum(value.numel() for value in trainable(model.query).values())


def row(name: str) -> str:
    model, method = attached(name, SHOWN)
    layer = next(iter(method.layers.values()), None)
    said, counted = facts(type(method)), measured(name, SHOWN)
    numbers = [f"`{said[key]}`: {counted[key]:,}" if key in said else str(counted.get(key, "")) for key in KEYS[:3]]
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


def largest(one: list, two: list) -> str:
    return f"{max(abs(a - b) for a, b in zip(one, two, strict=True)):g}"


def distinct(matrices: torch.Tensor) -> int:
    """How many of (n, ...) differ by more than rounding."""
    return len(torch.unique((matrices.detach().flatten(1) * 1e4).round(), dim=0))


def findings() -> list[tuple[str, str]]:
    """What we found, each with the test that shows it."""
    lora = train("lora", "lora_dropout=0")[2]
    mplora = train("mplora", "lora_dropout=0", "n=4", "penalty_weight=0")[2]
    melora = train("melora", "lora_dropout=0", "n=1")[2]
    B = torch.randn(1, 24, 8, generator=torch.Generator().manual_seed(4))
    once, twice = (path_overlap(times * B, 2, "squared_frobenius").item() for times in (1, 2))
    readings = (["path_dropout=shared"], ["path_dropout=shared", "orth=0.1"], ["path_dropout=independent"])
    paths = [distinct(train("share_lora", "n=3", "lora_dropout=0.2", *reading)[0].query.B[0]) for reading in readings]
    several = count(attached("multi_lora", SHOWN, "n=4")[0]) // count(attached("lora", SHOWN)[0])
    delta = train("delta_lora", "r=4", "start_step=3")[0].query.delta_weight()[0].detach().double()
    rank = int(torch.linalg.matrix_rank(delta, rtol=1e-6))
    ranks = [train("adalora", "delta_t=2", steps=24, hook=hook)[1].report(0)["ranks"] for hook in (True, False)]
    pruned, never = (sum(found.values()) / len(found) for found in ranks)
    one_less, all_steps = (train("dylora", "lora_dropout=0", steps=steps)[0].query.A for steps in (11, 12))
    moved = int((all_steps - one_less)[0].abs().sum(1).count_nonzero())
    llama = 64 * count(attached("lora", (4096, 4096), "r=64")[0])  # q and v of 32 layers
    mini_llama = 64 * count(attached("melora", (4096, 4096), "r=1", "n=64")[0])
    scale = attached("lora", SHOWN, "r=8")[0].query.scaling
    mini_scale = attached("melora", SHOWN, "r=1", "n=8")[0].query.scaling
    facts_file, paths_file = "test_facts.py::test_", "test_paths.py::test_"
    return [
        (
            f"**MPLoRA at lambda = 0 is LoRA.** n only partitions the penalty: trained side by side for {len(lora)} steps, "
            f"their losses differ by {largest(lora, mplora)}. The lambda = 0 row of the paper's table 3 is a second "
            "sample of its LoRA row.",
            facts_file + "limits_are_lora_to_the_last_bit",
        ),
        (
            f"**MELoRA at n = 1 is LoRA.** Their losses differ by {largest(lora, melora)}.",
            facts_file + "limits_are_lora_to_the_last_bit",
        ),
        (
            f"**MPLoRA's penalty is quartic in B, and B starts at 0.** Doubling B multiplies it by {twice / once:.4g}. "
            "Records hold `penalty` beside `train_loss`, so that anyone can see whether it mattered.",
            facts_file + "path_overlap_is_the_double_loop",
        ),
        (
            f"**Share-LoRA, read literally, has one path.** Of 3 B_i, {paths[0]} is left distinct after training with one "
            f"dropout mask for all, {paths[1]} with the penalty, and {paths[2]} where each path draws its own mask, which "
            "is our default.",
            paths_file + "share_lora_paths_stay_equal_unless_their_dropout_differs",
        ),
        (
            "**Multi-LoRA is one LoRA** of rank n r whose alpha is n times larger, built of its own factors: at n = 4 it "
            f"trains {several} times LoRA's numbers.",
            paths_file + "multi_lora_is_one_lora_of_rank_n_r_and_alpha_n_times_larger",
        ),
        (
            "**Delta-LoRA's update is of low rank.** The moves of W telescope to lambda s (B A - B_K A_K): at r = 4 the "
            f"trained update has rank {rank}, which is 2r, of {len(delta)} possible.",
            "test_delta_lora.py::test_the_update_is_of_rank_2r_at_most",
        ),
        (
            f"**AdaLoRA without its hook is not AdaLoRA.** With target_r = 8 the matrices end at rank {pruned:g} on "
            f"average; where nobody calls the hook after the optimizer's step, at {never:g}, and nothing says so. PEFT "
            "leaves that call to the training script.",
            "test_adalora.py::test_adalora_equals_stock_peft",
        ),
        (
            "**DyLoRA's frozen rows move.** One row of A has a gradient in each step; AdamW's momentum and decay moved "
            f"{moved} of 8 in the last step of a short run, as in the official code.",
            "test_dylora.py::test_which_rows_and_columns_get_a_gradient",
        ),
        (
            f"**MELoRA trains {llama // mini_llama} times fewer numbers on LLaMA-2-7B**, where the paper says 36: "
            f"{llama:,} in LoRA r = 64, {mini_llama:,} in MELoRA r = 1.",
            facts_file + "published_parameter_counts",
        ),
        (
            f"**Equal equivalent rank is not equal scale.** The scale is alpha / r with the mini rank: {scale:g} in LoRA "
            f"r = 8, {mini_scale:g} in MELoRA r = 1, n = 8. MELoRA's records report both.",
            facts_file + "scale_is_alpha_over_the_mini_rank",
        ),
    ]


def document() -> str:
    names = sorted(path.stem for path in (ROOT / "configs" / "method").glob("*.yaml"))
    found = [(text, *test.split("::")) for text, test in findings()]
    lines = [
        "# Methods",
        "",
        f"Written by `make docs`. Numbers are counted or measured when it runs, for one adapted matrix of {SHOWN[0]} x "
        f"{SHOWN[1]} (RoBERTa-base's query) and the values of configs/method/. x is the layer's input, W its frozen weight, "
        "R the seeds trained side by side. Rank: the bound, then that of an update with random values. Cost: multiply-adds "
        "per token in training, those of W aside.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + " --- |" * len(COLUMNS),
        *map(row, names),
        "",
        "## What we found",
        "",
        *(f"* {text} Test: [`{test}`](../tests/methods/{file})." for text, file, test in found),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(f"wrote {write_text(ROOT / 'docs' / 'methods.md', document())}")
