"""LoRA-FA and VeRA against stock PEFT with the same frozen matrices, and what they leave frozen."""

import math

import peft
import pytest
import torch
from method_helpers import COMMON, STEPS, build, inputs, layer_of, train, trained_numbers
from transformers import AutoModelForSequenceClassification

from melora_bench.adapters.files import adapter_tensors, trainable
from melora_bench.methods.lora_fa import LoRAFA
from melora_bench.methods.vera import VeRA


def stock(folder, config: peft.PeftConfig, ours):
    """A PEFT model in float64 whose head, lora_A and lora_B are those of `ours`."""
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2).double()
    model = peft.get_peft_model(base, config).double().eval()
    values = adapter_tensors(ours, 0)
    for name, value in model.named_parameters():
        key = name.removeprefix("base_model.model.").replace("modules_to_save.default.", "")
        key = key.replace("lora_A.default.weight", "A").replace("lora_B.default.weight", "B")
        if value.requires_grad and "vera_lambda" not in name:
            value.data.copy_(values[key])
    return model


def assert_same_run(ours, method, theirs, kind: type, equal: bool) -> None:
    """24 clipped AdamW steps in float64: losses, updates and the last logits agree to 1e-12, or nowhere."""
    losses = train(ours, list(trainable(ours).values()))
    others = train(theirs, [value for value in theirs.parameters() if value.requires_grad])
    assert len(losses) == len(others) == STEPS >= 24
    assert losses[0] == pytest.approx(others[0], abs=1e-15)
    assert losses[0] > losses[-1]
    assert (max(abs(a - b) for a, b in zip(losses, others, strict=True)) < 1e-12) == equal
    deltas = [module.get_delta_weight("default") for module in theirs.modules() if isinstance(module, kind)]
    agree = [
        torch.allclose(layer.delta_weight()[0], delta, rtol=0, atol=1e-12)
        for layer, delta in zip(method.layers.values(), deltas, strict=True)
    ]
    assert agree == [equal] * 4
    assert torch.allclose(ours(**inputs(1)).logits, theirs(**inputs(1)).logits, rtol=0, atol=1e-12) == equal


@pytest.mark.parametrize(("alpha", "frozen", "equal"), [(16, True, True), (17, True, False), (16, False, False)])
def test_lora_fa_equals_stock_peft_with_a_frozen(tiny_roberta, alpha, frozen, equal):
    """With another alpha, or with lora_A trained, the runs differ. Our A stays as it was drawn."""
    ours, method = build(tiny_roberta, "lora_fa", [0], "method.lora_dropout=0")
    ours = ours.double()
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=8, lora_alpha=alpha, lora_dropout=0.0, target_modules=["query", "value"]
    )
    theirs = stock(tiny_roberta, config, ours)
    for name, value in theirs.named_parameters():
        if "lora_A" in name:
            value.requires_grad_(not frozen)
    start = [layer.A.clone() for layer in method.layers.values()]
    assert_same_run(ours, method, theirs, peft.tuners.lora.Linear, equal)
    for layer, A in zip(method.layers.values(), start, strict=True):
        assert torch.equal(layer.A, A) and layer.B.abs().max() > 1e-3
        assert not layer.A.requires_grad


@pytest.mark.parametrize(("d_initial", "equal"), [(0.1, True), (0.11, False)])
def test_vera_equals_stock_peft(tiny_roberta, d_initial, equal):
    """PEFT holds our projections and its own initial vectors; with another d_initial the runs differ."""
    ours, method = build(tiny_roberta, "vera", [0], "method.r=64")
    ours = ours.double()
    A, B = (getattr(next(iter(method.layers.values())).shared, part)[0] for part in "AB")
    config = peft.VeraConfig(task_type="SEQ_CLS", r=64, d_initial=d_initial, target_modules=["query", "value"])
    theirs = stock(tiny_roberta, config, ours)
    for found, own in ((theirs.base_model.vera_A["default"], A), (theirs.base_model.vera_B["default"], B)):
        assert found.shape == own.shape and not torch.equal(found, own)
        found.copy_(own)
    start = A.clone(), B.clone()
    assert_same_run(ours, method, theirs, peft.tuners.vera.Linear, equal)
    for layer in method.layers.values():
        assert torch.equal(layer.shared.A[0], start[0]) and torch.equal(layer.shared.B[0], start[1])
        assert layer.b.abs().max() > 1e-3 and (layer.d - 0.1).abs().max() > 1e-3


def test_veras_projections_are_one_pair_for_all_layers(tiny_roberta):
    """All four layers use the same memory, wherever the model moves; one adapter file holds one copy."""
    model, method = build(tiny_roberta, "vera", [3, 5])
    first = next(iter(method.layers.values())).shared
    assert (first.A.shape, first.B.shape) == ((2, 256, 32), (2, 32, 256))
    model.double()
    assert first.A.dtype == torch.float64
    assert len({layer.shared.A.data_ptr() for layer in method.layers.values()}) == 1
    assert len({layer.shared.B.data_ptr() for layer in method.layers.values()}) == 1
    assert sum(name.endswith((".A", ".B")) for name in adapter_tensors(model)) == 2


def test_veras_projections_depend_on_the_seed_alone(tiny_roberta):
    """Two seeds differ; seed 5 has the same alone, beside 3 and whatever the global generator holds."""
    found = {}
    for number, seeds in enumerate(([3, 5], [5], [5, 9])):
        torch.manual_seed(number)
        _, method = build(tiny_roberta, "vera", seeds)
        layer = next(iter(method.layers.values()))
        found |= {(number, seed): (layer.shared.A[k], layer.shared.B[k]) for k, seed in enumerate(seeds)}
    for part in range(2):
        assert torch.equal(found[0, 5][part], found[1, 5][part])
        assert torch.equal(found[0, 5][part], found[2, 5][part])
        assert not torch.isclose(found[0, 3][part], found[0, 5][part]).any(1).all()


def test_veras_projections_are_kaiming_uniform(tiny_roberta):
    """A and B are U(-sqrt(6 / fan_in), sqrt(6 / fan_in)), fan_in d_in = 32 and r = 512; d starts at 0.1, b at 0."""
    _, method = build(tiny_roberta, "vera", [3, 5], "method.r=512")
    layer = next(iter(method.layers.values()))
    for matrix, fan_in in ((layer.shared.A, 32), (layer.shared.B, 512)):
        bound = math.sqrt(6 / fan_in)
        assert 0.999 * bound < matrix.max().item() <= bound
        assert -bound <= matrix.min().item() < -0.999 * bound
        assert matrix.std().item() == pytest.approx(bound / math.sqrt(3), rel=1e-2)
        assert matrix.mean().item() == pytest.approx(0, abs=0.02 * bound)
    assert layer.d.eq(0.1).all() and layer.b.eq(0).all()


def test_parameter_counts_on_roberta_base():
    """24 matrices of 768 x 768. VeRA at r = 1024: the paper's 0.043M; LoRA-FA at r = 8: half of LoRA's 294,912."""
    vera = VeRA(version=1, target_modules=["query"], r=1024, lora_dropout=0.0, d_initial=0.1)
    assert 24 * trained_numbers(layer_of(vera, 768, 768, replicas=1, device="meta")) == 43_008
    assert 24 * trained_numbers(layer_of(LoRAFA(r=8, **COMMON), 768, 768, replicas=1, device="meta")) == 147_456
