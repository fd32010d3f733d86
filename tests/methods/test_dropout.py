"""The law of the adapters' dropout, by moments; its gradient, by the mask that the output shows."""

import math

import pytest
import torch
from conftest import run_point
from torch import nn
from transformers import AutoModelForSequenceClassification

from melora_bench.methods.dropout import Dropout, replace_dropouts

N = 1 << 20


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9, 2**-10, 1e-30])
def test_elements_fall_away_with_probability_p_and_the_mean_stays(p):
    torch.manual_seed(0)
    out = Dropout(p)(torch.ones(N))
    kept = out != 0
    assert abs((~kept).double().mean() - p) < 5 * math.sqrt(p * (1 - p) / N)
    assert torch.unique(out[kept]).tolist() == pytest.approx([1 / (1 - p)], rel=1e-6)
    assert abs(out.double().mean() - 1) < 5 * math.sqrt(p / (1 - p) / N)


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 768])
def test_elements_fall_away_independently(lag):
    """768 apart is the next token's same feature."""
    torch.manual_seed(1)
    gone = (Dropout(0.3)(torch.ones(N)) == 0).double() - 0.3
    correlation = (gone[:-lag] * gone[lag:]).mean() / (0.3 * 0.7)
    assert abs(correlation) < 5 / math.sqrt(N)


def test_gaps_between_dropped_elements_are_geometric():
    torch.manual_seed(2)
    gaps = (Dropout(0.05)(torch.ones(N)) == 0).nonzero().view(-1).diff()
    for gap in (1, 2, 5, 20, 60):
        longer = 0.95**gap
        assert abs((gaps > gap).double().mean() - longer) < 5 * math.sqrt(longer * (1 - longer) / len(gaps))


def test_every_place_has_the_same_law():
    """The first and the last too: one call in nine draws more than once."""
    torch.manual_seed(3)
    gone = torch.stack([Dropout(0.05)(torch.ones(1000)) == 0 for _ in range(4000)]).double().mean(0)
    assert (gone - 0.05).abs().max() < 5 * math.sqrt(0.05 * 0.95 / 4000)
    for end in (gone[:20], gone[-20:]):
        assert abs(end.mean() - 0.05) < 5 * math.sqrt(0.05 * 0.95 / 80000)


def test_two_calls_and_two_processes_of_one_seed_draw_as_they_should():
    layer, x = Dropout(0.5), torch.ones(4096)
    torch.manual_seed(3)
    first, second = layer(x), layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)
    assert abs(((first != 0) == (second != 0)).double().mean() - 0.5) < 5 * 0.5 / math.sqrt(4096)


@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 2, 4), (1,), (0, 4)])
def test_the_gradient_is_the_masks(shape):
    torch.manual_seed(4)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(shape, dtype=torch.float64)
    out = Dropout(0.4)(x)
    out.backward(grad)
    scale = torch.where(out == 0, 0.0, (out / x).detach())
    assert torch.allclose(x.grad, grad * scale, rtol=1e-12)
    assert x.grad.shape == out.shape == x.shape


def test_a_view_that_is_not_contiguous_is_dropped_like_any():
    torch.manual_seed(6)
    x = torch.ones(64, 32).T
    out = Dropout(0.5)(x)
    assert out.shape == (32, 64)
    assert set(out.unique().tolist()) == {0.0, 2.0}


def test_bf16_stays_bf16():
    torch.manual_seed(5)
    out = Dropout(0.25)(torch.ones(4096, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    assert 0.2 < (out == 0).float().mean() < 0.3


def test_nothing_happens_in_evaluation_or_at_p_0_and_everything_at_p_1():
    x = torch.randn(100, generator=torch.Generator().manual_seed(0))
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
    assert torch.equal(Dropout(1.0)(x), torch.zeros(100))


def test_what_is_no_probability_is_refused():
    for p in (-0.1, 1.1):
        with pytest.raises(ValueError, match="between 0 and 1"):
            Dropout(p)


def test_less_is_kept_for_the_backward_pass_than_by_torchs_own():
    def kept(layer: nn.Module) -> int:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
            layer(torch.ones(1000, requires_grad=True))
        return sum(sizes)

    assert 0 < kept(Dropout(0.1)) < 2000
    assert kept(nn.Dropout(0.1)) >= 4000


def test_a_models_dropouts_are_replaced_with_their_rates(tiny_roberta):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_roberta, hidden_dropout_prob=0.25)
    before = {name: module.p for name, module in model.named_modules() if isinstance(module, nn.Dropout)}
    replace_dropouts(model)
    after = {name: module.p for name, module in model.named_modules() if isinstance(module, Dropout)}
    assert after == before
    assert 0.25 in after.values()
    assert not any(type(module) is nn.Dropout for module in model.modules())


def test_a_run_trains_with_them(tiny_overrides, monkeypatch):
    seen = []
    real = Dropout.forward
    monkeypatch.setattr(Dropout, "forward", lambda self, x: seen.append(self.p) or real(self, x))
    run_point([*tiny_overrides, "backbone.dropout=0.3", "method.lora_dropout=0.2"])
    assert {0.2, 0.3} <= set(seen)
