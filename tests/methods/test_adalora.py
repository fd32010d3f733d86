"""AdaLoRA against the official algorithm as a literal loop, and against stock PEFT: the same initial values, data and
AdamW give the same losses and ranks."""

import peft
import pytest
import torch
from method_helpers import batches, build
from torch import nn
from transformers import AutoModelForSequenceClassification

from melora_bench.adapters.files import trainable

STEPS = 24
FIRST, LAST, EVERY = 2, 18, 3  # of the budget's fall, and how often it prunes


def ours(folder, hook: bool, penalty: bool, skipped: int | None = None, every: int = EVERY):
    own = (f"method.delta_t={every}", "method.orth_weight=0.5", "method.lora_dropout=0")
    model, method = build(folder, "adalora", [0], *own)
    method.first, method.last = FIRST, LAST
    model = model.double()
    start = {name: value.detach().clone() for name, value in trainable(model).items()}
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=5e-2)
    losses, ranks = [], []
    for step, (batch, labels) in enumerate(batches()):
        loss = torch.nn.functional.cross_entropy(model(**batch).logits, labels)
        (loss + (method.penalty().sum() if penalty else 0)).backward()
        optimizer.step()
        if hook and step != skipped:
            method.after_optimizer_step(step, optimizer)
        optimizer.zero_grad()
        losses.append(loss.item())
        ranks.append(list(method.report(0)["ranks"].values()))
    return losses, ranks, start


class Official(nn.Module):
    """h = W x + (alpha / r) P diag(E) Q x of one replica, alpha 16 and r 12."""

    def __init__(self, base: nn.Linear, start: dict, name: str) -> None:
        super().__init__()
        self.base = base
        self.P, self.E, self.Q = (nn.Parameter(start[f"{name}.{part}"][0].clone()) for part in "PEQ")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + x @ self.Q.T @ self.E.diag() @ self.P.T * 16 / 12


def official(folder, start: dict, every: int, count_from: int = 0):
    """The rank allocator as the authors' loralib has it, whose training loop calls it with 0 after the first step."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2).double().eval()
    model.requires_grad_(False)
    layers = {name[:-2]: None for name in start if name.endswith(".E")}
    for name in layers:
        layers[name] = Official(model.get_submodule(name), start, name)
        model.set_submodule(name, layers[name])
    for part in ("dense", "out_proj"):
        head = nn.Linear(*start[f"classifier.{part}.weight"].shape[:0:-1], dtype=torch.float64)
        head.weight.data, head.bias.data = (start[f"classifier.{part}.{key}"][0].clone() for key in ("weight", "bias"))
        setattr(model.classifier, part, head)
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=5e-2)
    mean, deviation, losses, ranks = {}, {}, [], []
    for step, (batch, labels) in enumerate(batches(), count_from):
        loss = torch.nn.functional.cross_entropy(model(**batch).logits, labels)
        grams = [gram for layer in layers.values() for gram in (layer.P.T @ layer.P, layer.Q @ layer.Q.T)]
        (loss + 0.5 * sum((gram - torch.eye(12)).norm() for gram in grams) / len(grams)).backward()
        optimizer.step()
        with torch.no_grad():
            for name, layer in layers.items() if step < LAST else ():
                for part in "PEQ":
                    key, weight = (name, part), getattr(layer, part)
                    importance = (weight * weight.grad).abs()
                    mean[key] = 0.85 * mean.get(key, 0) + 0.15 * importance
                    deviation[key] = 0.85 * deviation.get(key, 0) + 0.15 * (importance - mean[key]).abs()
            budget = None
            if step > LAST:
                budget = 8 * len(layers)
            elif step > FIRST and step % every == 0:
                left = 1 - (step - FIRST) / (LAST - FIRST)
                budget = int(8 * len(layers) + 4 * len(layers) * left**3)
            if budget:
                score = {key: mean[key] * deviation[key] for key in mean}
                triplets = {
                    name: score[name, "E"] + score[name, "P"].mean(0) + score[name, "Q"].mean(1) for name in layers
                }
                threshold = torch.cat([*triplets.values()]).sort().values[12 * len(layers) - budget - 1]
                for name, layer in layers.items():
                    layer.E[triplets[name] <= threshold] = 0
        optimizer.zero_grad()
        losses.append(loss.item())
        ranks.append([int(layer.E.count_nonzero()) for layer in layers.values()])
    return losses, ranks


def stock(folder, start):
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2).double()
    config = peft.AdaLoraConfig(
        task_type="SEQ_CLS",
        init_r=12,
        target_r=8,
        lora_alpha=16,
        lora_dropout=0.0,
        target_modules=["query", "value"],
        tinit=FIRST,
        tfinal=STEPS - LAST,
        deltaT=EVERY,
        beta1=0.85,
        beta2=0.85,
        orth_reg_weight=0.5,
        total_step=STEPS,
    )
    model = peft.get_peft_model(base, config).double().eval()
    for name, value in model.named_parameters():
        key = name.removeprefix("base_model.model.").replace("modules_to_save.default.", "")
        for theirs, mine in (("lora_A", "Q"), ("lora_B", "P"), ("lora_E", "E")):
            key = key.replace(f"{theirs}.default", mine)
        if "ranknum" in name:
            value.requires_grad_(False).fill_(12 - 1e-5)  # PEFT divides by this plus 1e-5
        elif value.requires_grad:
            value.data.copy_(start[key][0].reshape(value.shape))
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=5e-2)
    losses = []
    for step, (batch, labels) in enumerate(batches()):
        logits = model(**batch).logits
        loss = torch.nn.functional.cross_entropy(logits, labels)
        total = loss
        for name, value in model.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                gram = value @ value.T if "lora_A" in name else value.T @ value
                total = total + 0.5 / 8 * torch.linalg.norm(gram - torch.eye(len(gram), dtype=gram.dtype))
        total.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
        losses.append(loss.item())
    ranks = [int((value != 0).sum()) for name, value in model.named_parameters() if "lora_E" in name]
    return losses, ranks


# 18 is a multiple of 3 alone: with 4 the budget is reached one step later.
@pytest.mark.parametrize("every", [3, 4])
def test_adalora_equals_the_official_loop(tiny_roberta, every):
    """24 steps agree to 1e-12 and have the same ranks after each; counted from 1 they do not."""
    losses, ranks, start = ours(tiny_roberta, True, True, every=every)
    theirs, their_ranks = official(tiny_roberta, start, every)
    assert losses == pytest.approx(theirs, abs=1e-12)
    assert ranks == their_ranks
    others = [step for step in range(STEPS) if sum(ranks[step]) != 8 * 4]
    assert max(others) == (LAST - 1 if every == 3 else LAST)
    shifted, other_ranks = official(tiny_roberta, start, every, count_from=1)
    assert max(abs(a - b) for a, b in zip(losses, shifted, strict=True)) > 1e-6
    assert ranks != other_ranks


@pytest.mark.parametrize(("hook", "penalty", "equal"), [(True, True, True), (False, True, False), (True, False, False)])
def test_adalora_equals_stock_peft(tiny_roberta, hook, penalty, equal):
    """24 steps with pruning agree to 1e-9 and end at the same ranks; without the hook or the penalty they do not."""
    losses, ranks, start = ours(tiny_roberta, hook, penalty)
    theirs, their_ranks = stock(tiny_roberta, start)
    ranks = ranks[-1]
    assert sum(their_ranks) == 8 * 4
    assert (max(abs(a - b) for a, b in zip(losses, theirs, strict=True)) < 1e-9) == equal
    assert (ranks == their_ranks) == equal or not penalty


def test_a_last_pruning_that_fp16_skips_is_made_up_for(tiny_roberta):
    skipped, usual = (sum(ours(tiny_roberta, True, True, skipped)[1][-1]) for skipped in (LAST, None))
    assert skipped == usual == 8 * 4


def test_a_schedule_that_never_prunes_is_refused(tiny_roberta):
    with pytest.raises(ValueError, match=r"would never prune: no multiple of .*99"):
        build(tiny_roberta, "adalora", [0], "method.delta_t=99")


def test_a_schedule_that_ends_with_the_run_is_refused(tiny_roberta):
    """Of the 100 steps, 0 to 99, that `build` prepares, one must come after the last of the schedule."""
    assert build(tiny_roberta, "adalora", [0], "method.final_warmup=0.02")[1].last == 98
    with pytest.raises(ValueError, match=r"never reach its budget in 100 steps: raise method\.final_warmup"):
        build(tiny_roberta, "adalora", [0], "method.final_warmup=0.01")
