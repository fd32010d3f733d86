"""LoRA, rsLoRA and LoRA+ against stock PEFT: the same initial values, data and AdamW must give the same losses and
weights."""

import peft
import peft.optimizers
import pytest
import torch
from method_helpers import build, inputs, train
from transformers import AutoModelForSequenceClassification

from melora_bench.adapters.files import trainable


def stock(folder, ours, alpha: float, **options):
    """PEFT's LoRA in float64, started from the initial values of `ours`."""
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2).double()
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=8, lora_alpha=alpha, lora_dropout=0.0, target_modules=["query", "value"], **options
    )
    model = peft.get_peft_model(base, config).eval()
    values = trainable(ours)
    for name, value in model.named_parameters():
        if value.requires_grad:
            key = name.removeprefix("base_model.model.").replace("modules_to_save.default.", "")
            key = key.replace("lora_A.default.weight", "A").replace("lora_B.default.weight", "B")
            value.data.copy_(values[key][0])
    return model


@pytest.mark.parametrize(("rslora", "equal"), [(True, True), (False, False)])
def test_rslora_equals_stock_peft(tiny_roberta, rslora, equal):
    """24 clipped AdamW steps in float64 agree to 1e-12 with use_rslora; without, they do not."""
    ours, method = build(tiny_roberta, "rslora", [0], "method.lora_dropout=0")
    ours = ours.double()
    theirs = stock(tiny_roberta, ours, 16, use_rslora=rslora)
    losses = train(ours, list(trainable(ours).values()))
    others = train(theirs, [value for value in theirs.parameters() if value.requires_grad])
    assert losses[0] == pytest.approx(others[0], abs=1e-15)
    assert (max(abs(a - b) for a, b in zip(losses, others, strict=True)) < 1e-12) == equal
    assert next(iter(method.layers.values())).scaling == 16 / 8**0.5


@pytest.mark.parametrize(("ratio", "equal"), [(16, True), (8, False)])
def test_lora_plus_equals_stock_peft(tiny_roberta, ratio, equal):
    """24 clipped steps of PEFT's LoRA+ optimizer agree to 1e-12; with another ratio they do not. The head is frozen, as
    PEFT gives its biases B's rate."""
    ours, method = build(tiny_roberta, "lora_plus", [0], "method.lora_dropout=0", "method.lr_ratio=16")
    ours = ours.double()
    theirs = stock(tiny_roberta, ours, 16)
    for model in (ours, theirs):
        for name, value in model.named_parameters():
            value.requires_grad_(value.requires_grad and "classifier" not in name)
    optimizer = peft.optimizers.create_loraplus_optimizer(
        theirs, torch.optim.AdamW, lr=5e-3, loraplus_lr_ratio=ratio, loraplus_weight_decay=0.1
    )
    groups = method.param_groups(trainable(ours), 5e-3)
    assert [(group["lr"], len(group["params"])) for group in groups] == [(5e-3, 4), (8e-2, 4)]
    losses = train(ours, list(trainable(ours).values()), torch.optim.AdamW(groups, weight_decay=0.1))
    others = train(theirs, [value for value in theirs.parameters() if value.requires_grad], optimizer)
    assert losses[0] == pytest.approx(others[0], abs=1e-15) and losses[0] != losses[-1]
    assert (max(abs(a - b) for a, b in zip(losses, others, strict=True)) < 1e-12) == equal


@pytest.mark.parametrize(("alpha", "equal"), [(16, True), (17, False)])
def test_lora_equals_stock_peft(tiny_roberta, alpha, equal):
    """24 clipped AdamW steps in float64 agree to 1e-12; with another alpha they do not."""
    ours, method = build(tiny_roberta, "lora", [0], "method.lora_dropout=0")
    ours = ours.double()
    theirs = stock(tiny_roberta, ours, alpha)
    losses = train(ours, list(trainable(ours).values()))
    others = train(theirs, [value for value in theirs.parameters() if value.requires_grad])
    assert losses[0] == pytest.approx(others[0], abs=1e-15)
    assert losses[0] > losses[-1]
    assert (max(abs(a - b) for a, b in zip(losses, others, strict=True)) < 1e-12) == equal
    deltas = [
        module.get_delta_weight("default") for module in theirs.modules() if isinstance(module, peft.tuners.lora.Linear)
    ]
    agree = [
        torch.allclose(layer.delta_weight()[0], delta, atol=1e-12)
        for layer, delta in zip(method.layers.values(), deltas, strict=True)
    ]
    assert len(agree) == 4 and all(agree) == equal
    assert torch.allclose(ours(**inputs(1)).logits, theirs(**inputs(1)).logits, atol=1e-12) == equal
