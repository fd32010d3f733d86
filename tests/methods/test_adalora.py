"""AdaLoRA against stock PEFT: the same initial values, data and AdamW give the same losses and the same ranks."""

import peft
import pytest
import torch
from method_helpers import batches, build
from transformers import AutoModelForSequenceClassification

from melora_bench.adapters.files import trainable

STEPS = 24
SCHEDULE = {"init_warmup": 0.1, "final_warmup": 0.25, "delta_t": 3}  # of 24 steps: prune between steps 2 and 18


def ours(folder, hook: bool, penalty: bool, skipped: int | None = None):
    overrides = [f"method.{key}={value}" for key, value in SCHEDULE.items()]
    model, method = build(folder, "adalora", [0], "method.lora_dropout=0", "method.orth_weight=0.5", *overrides)
    method.first, method.last = 2, 18
    model = model.double()
    start = {name: value.detach().clone() for name, value in trainable(model).items()}
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=5e-2)
    losses = []
    for step, (batch, labels) in enumerate(batches()):
        loss = torch.nn.functional.cross_entropy(model(**batch).logits, labels)
        (loss + (method.penalty().sum() if penalty else 0)).backward()
        optimizer.step()
        if hook and step != skipped:
            method.after_optimizer_step(step, optimizer)
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, list(method.report(0)["ranks"].values()), start


def stock(folder, start):
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2).double()
    config = peft.AdaLoraConfig(
        task_type="SEQ_CLS",
        init_r=12,
        target_r=8,
        lora_alpha=16,
        lora_dropout=0.0,
        target_modules=["query", "value"],
        tinit=2,
        tfinal=6,
        deltaT=3,
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
    for step, (batch, labels) in enumerate(batches(), 1):
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


@pytest.mark.parametrize(("hook", "penalty", "equal"), [(True, True, True), (False, True, False), (True, False, False)])
def test_adalora_equals_stock_peft(tiny_roberta, hook, penalty, equal):
    """24 steps with pruning agree to 1e-9 and end at the same ranks; without the hook or the penalty they do not."""
    losses, ranks, start = ours(tiny_roberta, hook, penalty)
    theirs, their_ranks = stock(tiny_roberta, start)
    assert sum(their_ranks) == 8 * 4
    assert (max(abs(a - b) for a, b in zip(losses, theirs, strict=True)) < 1e-9) == equal
    assert (ranks == their_ranks) == equal or not penalty


def test_a_last_pruning_that_fp16_skips_is_made_up_for(tiny_roberta):
    skipped, usual = (sum(ours(tiny_roberta, True, True, skipped)[1]) for skipped in (17, None))
    assert skipped == usual == 8 * 4


def test_a_schedule_that_never_prunes_is_refused(tiny_roberta):
    with pytest.raises(ValueError, match=r"would never prune: no multiple of .*99"):
        build(tiny_roberta, "adalora", [0], "method.delta_t=99")
