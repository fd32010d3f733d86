"""What every method must do; a new configs/method/<name>.yaml is tested without editing this file."""

import copy

import pytest
import torch
from conftest import composed
from method_helpers import METHODS, PACKING, build, disturb, inputs, seeds_of
from transformers import AutoModelForSequenceClassification

from melora_bench.adapters.files import adapter_tensors, trainable
from melora_bench.files import ROOT
from melora_bench.methods.attach import merge
from melora_bench.methods.layers import HeadLinear, Replicated


@pytest.mark.parametrize("name", METHODS)
def test_start_equals_the_base_model(tiny_roberta, name):
    """At the start every replica computes exactly what the backbone under its own head does."""
    model, _ = build(tiny_roberta, name)
    plain = AutoModelForSequenceClassification.from_pretrained(tiny_roberta, num_labels=2).eval()
    x = inputs(len(seeds_of(name)))
    for k in range(len(seeds_of(name))):
        for part, module in model.classifier.named_modules():
            if isinstance(module, HeadLinear):
                target = plain.classifier.get_submodule(part)
                target.weight.data, target.bias.data = module.weight[k].data, module.bias[k].data
        rows = slice(3 * k, 3 * k + 3)
        assert torch.equal(model.roberta(**x)[0], plain.roberta(**x)[0])
        assert torch.allclose(model(**x).logits[rows], plain(**inputs(1)).logits, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_the_last_evaluation_may_be_chosen(tiny_roberta, name):
    """The run that `build` prepares has 100 steps."""
    assert 0 <= build(tiny_roberta, name)[1].selectable_from <= 100


@pytest.mark.parametrize("name", METHODS)
def test_only_adapters_and_head_are_trained(tiny_roberta, name):
    """Gradients reach every trained tensor of every replica, and a training step changes nothing else."""
    model, method = build(tiny_roberta, name)
    disturb(model)
    before = copy.deepcopy(model.state_dict())
    trained, replicas = trainable(model), len(seeds_of(name))
    frozen = AutoModelForSequenceClassification.from_pretrained(tiny_roberta, num_labels=2).roberta
    if name in PACKING:
        assert not set(trained) & {f"roberta.{key}" for key, _ in frozen.named_parameters()}
    optimizer = torch.optim.AdamW(trained.values(), lr=0.1)
    method.before_forward(0)
    (model(**inputs(replicas)).logits.square().sum() + torch.as_tensor(method.penalty()).sum()).backward()
    for key, value in model.named_parameters():
        assert (value.grad is not None) == (key in trained), key
        assert key not in trained or value.grad.view(replicas, -1).abs().sum(1).gt(0).all(), key
    optimizer.step()
    method.after_optimizer_step(0, optimizer)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == set(trained)


@pytest.mark.parametrize("name", METHODS)
def test_merged_equals_unmerged(tiny_roberta, name):
    """A replica's merged plain model gives its logits, and holds plain layers only; a function of the input is
    refused."""
    model, method = build(tiny_roberta, name)
    disturb(model)
    replicas = len(seeds_of(name))
    packed = model(**inputs(replicas)).logits.view(replicas, 3, 2)
    for k in range(replicas):
        if forms(method) == {"function"}:
            with pytest.raises(ValueError, match="form: function"):
                merge(model, k)
            continue
        plain = merge(model, k)
        assert not any(isinstance(module, Replicated) for module in plain.modules())
        assert torch.allclose(plain(**inputs(1)).logits, packed[k], atol=1e-5)


def forms(method) -> set[str]:
    """The form that a method's layers declare; none of a method without layers."""
    return {layer.form for layer in method.layers.values()}


@pytest.mark.parametrize("name", METHODS)
def test_what_a_layer_offers_is_what_its_form_says(tiny_roberta, name):
    """One declared form per method. Factors have `lora_factors`; a function has neither factors, a weight nor a
    spectrum."""
    model, method = build(tiny_roberta, name)
    disturb(model)
    assert len(forms(method)) == bool(method.layers) and forms(method) <= {"factors", "matrix", "function"}
    for layer in method.layers.values():
        assert hasattr(layer, "lora_factors") == (layer.form == "factors")
        if layer.form == "function":
            with pytest.raises(NotImplementedError):
                layer.delta_weight()
    for form in forms(method) - {"factors"}:
        with pytest.raises(ValueError, match=f"{type(method).__name__} makes updates of the form '{form}'"):
            method.require_form("factors")
    assert (method.spectrum(0) is None) == (forms(method) == {"function"})


@pytest.mark.parametrize("name", METHODS)
def test_update_is_delta_weight_is_its_factors(tiny_roberta, name):
    """`update`, `delta_weight`, `singular_values` and, of factors, `lora_factors` say the same of every adapted
    layer."""
    model, method = build(tiny_roberta, name)
    disturb(model)
    for layer in method.layers.values():
        if layer.form == "function":
            continue
        identity = torch.eye(layer.base.in_features).expand(2, -1, -1)
        assert torch.allclose(layer.update(identity).mT, layer.delta_weight(), atol=1e-5)
        if layer.form == "factors":
            B, A = layer.lora_factors()
            assert torch.allclose(B @ A, layer.delta_weight(), atol=1e-6)
            assert B.shape[-1] == A.shape[-2] and B.shape[:2] == (2, layer.base.out_features)
        for k, full in enumerate(torch.linalg.svdvals(layer.delta_weight().double())):
            values = layer.singular_values(k)
            assert torch.allclose(values, full[: len(values)], atol=1e-5) and full[len(values) :].sum() < 1e-3


def assert_near(name: str, ours: torch.Tensor, terms: torch.Tensor, tolerance: float) -> None:
    """`ours` is the sum of `terms` (n, ...), in float64, up to `tolerance` of the sum of their absolute values."""
    gap, bound = (ours.double() - terms.sum(0)).norm().item(), tolerance * terms.abs().sum(0).norm().item()
    assert gap <= bound, f"{name} is off by {gap:.2e}, the bound is {bound:.2e}"


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)], ids=["float32", "bfloat16"]
)
@pytest.mark.parametrize("name", PACKING)
def test_a_layer_is_the_plain_one_with_its_weight_changed(tiny_roberta, name, dtype, tolerance):
    """Outputs and all gradients of (W + dW) x + b in float32; under bf16, up to its rounding. The other side is
    computed in float64, and a gradient's error is compared with the sum of its absolute terms, one of each output
    number: the sum itself may be small. As a run begins: later no gradient passes through the part of Delta-LoRA's W
    that moved."""
    model, method = build(tiny_roberta, name)
    source = torch.Generator().manual_seed(0)
    for value in trainable(model).values():
        value.data += 0.3 * torch.randn(value.shape, generator=source)
    for layer in method.layers.values():
        if layer.form == "function":
            continue
        x = torch.randn(2, 7, layer.base.in_features, generator=source).requires_grad_(True)
        towards = torch.randn(2, 7, layer.base.out_features, generator=source)
        exact, exact_x = copy.deepcopy(layer).double(), x.detach().double().requires_grad_(True)
        names = ["x", *(key for key, value in layer.named_parameters() if value.requires_grad)]
        wanted, exact_wanted = (
            [start, *(value for value in one.parameters() if value.requires_grad)]
            for start, one in ((x, layer), (exact_x, exact))
        )
        weight = exact.base.weight + exact.delta_weight()
        plain = exact_x @ weight.mT + exact.base.bias
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            fast = layer(x)
        assert fast.dtype == dtype
        products = (exact_x.unsqueeze(2) * weight.unsqueeze(1)).movedim(-1, 0)
        assert_near("output", fast, torch.cat([products, exact.base.bias.expand(1, *plain.shape)]), tolerance)
        gradients = torch.autograd.grad(fast, wanted, towards.to(fast.dtype))
        each = towards.double().flatten().diag().view(-1, *towards.shape)
        terms = torch.autograd.grad(plain, exact_wanted, each, is_grads_batched=True)
        for key, ours, parts in zip(names, gradients, terms, strict=True):
            assert_near(f"the gradient of {key}", ours, parts, tolerance)


def test_the_spectrum_counts_singular_values_above_a_tenth(tiny_roberta):
    """Of an update with the singular values 0.3, 0.11 and 0.05, two."""
    _, method = build(tiny_roberta, "lora")
    for layer in method.layers.values():
        layer.A.data.zero_(), layer.B.data.zero_()
        for k, value in enumerate((0.3, 0.11, 0.05)):
            layer.A.data[:, k, k], layer.B.data[:, k, k] = 1.0, value / layer.scaling
    assert list(method.spectrum(0).values()) == [2] * 4


@pytest.mark.parametrize("name", METHODS)
def test_initial_values_depend_on_the_seed_alone(tiny_roberta, name):
    """Seed 5 starts alike alone, beside seed 3 and whatever the global generator holds; its head alike in every
    method."""
    torch.manual_seed(123)
    beside, _ = build(tiny_roberta, name)
    last = len(seeds_of(name)) - 1
    torch.manual_seed(456)
    alone = adapter_tensors(build(tiny_roberta, name, [5])[0], 0)
    other = adapter_tensors(build(tiny_roberta, "lora", [5, 9])[0])
    assert adapter_tensors(beside, last).keys() == alone.keys()
    for key, value in adapter_tensors(beside, last).items():
        assert torch.equal(value, alone[key])
        if key.startswith("classifier."):
            assert torch.equal(value, other[key][0])
            assert key.endswith("bias") or not torch.equal(value, other[key][1])


@pytest.mark.parametrize("name", PACKING)
def test_replicas_do_not_touch_each_other(tiny_roberta, name):
    """NaN in one replica's rows or weights leaves the other replica's loss and gradients bit-equal."""
    grads = []
    for poison in (0.0, float("nan")):
        model, method = build(tiny_roberta, name)
        disturb(model)
        for value in trainable(model).values():
            value.data[0] += poison
        loss = model(**inputs()).logits.view(2, -1).square().sum(1) + method.penalty()
        loss.sum().backward()
        assert torch.isfinite(loss).tolist() == [poison == 0.0, True]
        grads.append({key: value.grad[1].clone() for key, value in trainable(model).items()})
    assert all(torch.equal(grads[0][key], grads[1][key]) for key in grads[0])


@pytest.mark.parametrize("name", METHODS)
def test_a_method_fits_in_one_short_file(name):
    target = composed([f"method={name}"]).method._target_
    path = ROOT / (target.rsplit(".", 1)[0].replace(".", "/") + ".py")
    assert len(path.read_text().splitlines()) <= 150


def test_targets_are_matched_by_name_ending(tiny_roberta):
    _, method = build(tiny_roberta, "lora", None, "method.target_modules=[self.query,output.dense]")
    adapted = sorted(name.split("layer.")[1] for name in method.layers)
    assert adapted == [
        "0.attention.output.dense",
        "0.attention.self.query",
        "0.output.dense",
        "1.attention.output.dense",
        "1.attention.self.query",
        "1.output.dense",
    ]
