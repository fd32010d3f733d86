"""The facts about LoRA, MELoRA and MPLoRA that their papers rest on, and their parameter counts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from method_helpers import COMMON, PENALTY, build, disturb, inputs, layer_of

from melora_bench.adapters.files import trainable
from melora_bench.methods.lora import LoRA
from melora_bench.methods.melora import MELoRA
from melora_bench.methods.mplora import MPLoRA, path_overlap


@given(st.integers(1, 4), st.sampled_from([1, 2, 4]), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_melora_is_block_diagonal_of_rank_n_r(r, n, a, b, replicas):
    """For any shape: zero outside the n blocks, each block s B_i A_i, rank n r when the slices allow it."""
    d_in, d_out = 4 * n * a, 4 * n * b
    layer = layer_of(MELoRA(r=r, n=n, **COMMON), d_in, d_out, replicas).double()
    delta = layer.delta_weight()
    x = torch.randn(replicas, 5, d_in, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(layer.update(x), x @ delta.mT, atol=1e-12)
    blocks = delta.view(replicas, n, d_out // n, n, d_in // n)
    for i in range(n):
        for j in range(n):
            expected = 16 / r * layer.B[:, i] @ layer.A[:, i] if i == j else torch.zeros((), dtype=torch.float64)
            assert torch.allclose(blocks[:, i, :, j], expected.expand(replicas, d_out // n, d_in // n), atol=1e-12)
    rank = n * min(r, d_in // n, d_out // n)
    assert all(torch.linalg.matrix_rank(one).item() == rank for one in delta)


def steps(model, method, count: int = 6) -> torch.Tensor:
    """Train a few steps in float32; returns the losses."""
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=0.02)
    losses = []
    for step in range(count):
        method.before_forward(step)
        loss = model(**inputs()).logits.view(2, -1).square().sum(1) + method.penalty()
        loss.sum().backward()
        optimizer.step()
        method.after_optimizer_step(step, optimizer)
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses)


@pytest.mark.parametrize(
    ("name", "overrides"), [("melora", ["method.n=1"]), ("mplora", ["method.n=4", "method.penalty_weight=0"])]
)
def test_limits_are_lora_to_the_last_bit(tiny_roberta, name, overrides):
    """MELoRA with n = 1, and MPLoRA at lambda 0 for any n, train exactly as LoRA does."""
    runs = []
    for method_name, extra in (("lora", []), (name, overrides)):
        model, method = build(tiny_roberta, method_name, [3, 5], *extra)
        losses = steps(model, method)
        runs.append((losses, [layer.delta_weight() for layer in method.layers.values()]))
    assert runs[0][0][0, 0] != runs[0][0][-1, 0]
    assert torch.equal(runs[0][0], runs[1][0])
    assert all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1], strict=True))


def test_mplora_with_a_penalty_is_not_lora(tiny_roberta):
    """The penalty bites: without it the two would be equal."""
    one, method = build(tiny_roberta, "mplora", [3, 5], "method.penalty_weight=5")
    disturb(one)
    two, other = build(tiny_roberta, "lora")
    disturb(two)
    assert not torch.equal(steps(one, method), steps(two, other))


@pytest.mark.parametrize("norm", ["squared_frobenius", "abs_sum"])
@given(st.integers(1, 3), st.sampled_from([1, 2, 3, 4]), st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_path_overlap_is_the_double_loop(norm, r, n, replicas):
    """The Gram-matrix form equals eq. 7 written as two loops."""
    B = torch.randn(replicas, 12, r, dtype=torch.float64, generator=torch.Generator().manual_seed(r + n))
    paths = B.chunk(n, dim=1)
    size = {"squared_frobenius": lambda g: g.square().sum((1, 2)), "abs_sum": lambda g: g.abs().sum((1, 2))}[norm]
    loop = sum((size(paths[i].mT @ paths[j]) for j in range(n) for i in range(j)), torch.zeros(replicas, dtype=B.dtype))
    assert torch.allclose(path_overlap(B, n, norm), loop, atol=1e-12)


def test_penalty_is_lambda_times_the_sum_or_mean_over_layers(tiny_roberta):
    model, method = build(tiny_roberta, "mplora", [3, 5], "method.penalty_weight=0.5")
    disturb(model)
    each = torch.stack([path_overlap(layer.B, 2, "squared_frobenius") for layer in method.layers.values()])
    assert each.shape == (4, 2)
    assert torch.allclose(method.penalty(), 0.5 * each.sum(0))
    method.reduce_layers = "mean"
    assert torch.allclose(method.penalty(), 0.5 * each.mean(0))


@pytest.mark.parametrize(
    ("method", "shape", "layers", "expected"),
    [
        (LoRA(r=8, **COMMON), (768, 768), 24, 294_912),
        (MELoRA(r=8, n=4, **COMMON), (768, 768), 24, 294_912),
        (MELoRA(r=1, n=8, **COMMON), (768, 768), 24, 36_864),
        (
            MPLoRA(r=8, n=4, **PENALTY, **COMMON),
            (768, 768),
            24,
            294_912,
        ),
        (LoRA(r=64, **COMMON), (4096, 4096), 64, 33_554_432),
        (MELoRA(r=1, n=64, **COMMON), (4096, 4096), 64, 524_288),
    ],
)
def test_published_parameter_counts(method, shape, layers, expected):
    """RoBERTa-base: 24 matrices of 768 x 768; LLaMA-2-7B: 64 of 4096 x 4096."""
    layer = layer_of(method, *shape, replicas=1, device="meta")
    assert layers * (layer.A.numel() + layer.B.numel()) == expected


def test_scale_is_alpha_over_the_mini_rank():
    assert layer_of(MELoRA(r=8, n=4, **COMMON), 16, 16).scaling == 2
    assert layer_of(MELoRA(r=1, n=4, **COMMON), 16, 16).scaling == 16


def test_initial_a_has_the_law_of_its_fan_in():
    """kaiming_uniform: bounds 1/sqrt(fan_in) with the mini adapters' fan-in d_in / n; gaussian: sd 1/sqrt(r)."""
    uniform = layer_of(MELoRA(r=8, n=4, **COMMON), 1024, 64).A
    assert uniform.abs().max().item() == pytest.approx(1 / 16, rel=1e-2)
    assert uniform.std().item() == pytest.approx(1 / 16 / 3**0.5, rel=2e-2)
    gaussian = layer_of(LoRA(r=4, **COMMON | {"init_a": "gaussian"}), 4096, 64).A
    assert gaussian.std().item() == pytest.approx(0.5, rel=2e-2)
