"""DyLoRA: the truncated update of the drawn rank, who gets a gradient, the law of the draws, and the scores by rank."""

import pytest
import torch
from conftest import run_point
from method_helpers import build, disturb, inputs
from scipy.stats import chisquare

from melora_bench.records import records

RANKS = range(1, 9)  # the method's default r is 8


def dylora(folder, frozen: bool = True, seeds: list[int] | None = None):
    """The tiny model under DyLoRA without dropout on its path, every tensor away from its initial value."""
    model, method = build(folder, "dylora", seeds, "method.lora_dropout=0", f"method.frozen={frozen}")
    disturb(model)
    return model, method


def drawn(method, steps: range) -> torch.Tensor:
    """(steps, R): the ranks that the layers hold in each step, the same in all layers."""
    found = []
    for step in steps:
        method.before_forward(step)
        first, *others = (layer.drawn for layer in method.layers.values())
        assert all(torch.equal(first, other) for other in others)
        found.append(first)
    return torch.stack(found)


def samples(layer) -> torch.Tensor:
    return torch.randn(2, 5, layer.base.in_features, generator=torch.Generator().manual_seed(2))


def truncated(layer, x: torch.Tensor, ranks: list[int]) -> torch.Tensor:
    """The literal (alpha / b) B[:, :b] A[:b] x of each replica, alpha 16."""
    each = zip(layer.A.detach(), layer.B.detach(), x, ranks, strict=True)
    return torch.stack([16 / b * rows @ (B[:, :b] @ A[:b]).T for A, B, rows, b in each])


def same(one: torch.Tensor, two: torch.Tensor) -> bool:
    return torch.allclose(one, two, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("frozen", [True, False])
def test_which_rows_and_columns_get_a_gradient(tiny_roberta, frozen):
    """frozen: row b of A and column b of B alone; otherwise all up to b; b is each replica's own, in every layer."""
    model, method = dylora(tiny_roberta, frozen)
    model.train()
    torch.manual_seed(0)
    seen = set()
    for step in range(40):
        ranks = drawn(method, range(step, step + 1))[0].tolist()
        seen.add(tuple(ranks))
        model.zero_grad()
        model(**inputs()).logits.square().sum().backward()
        for layer in method.layers.values():
            for k, b in enumerate(ranks):
                expected = [rank == b if frozen else rank <= b for rank in RANKS]
                assert layer.A.grad[k].ne(0).any(1).tolist() == layer.A.grad[k].ne(0).all(1).tolist() == expected
                assert layer.B.grad[k].ne(0).any(0).tolist() == layer.B.grad[k].ne(0).all(0).tolist() == expected
    assert {a for a, _ in seen} == {b for _, b in seen} == set(RANKS)
    assert len({a - b for a, b in seen}) > 5


@pytest.mark.parametrize("frozen", [True, False])
def test_training_uses_the_drawn_rank_and_its_scale(tiny_roberta, frozen):
    """In training (alpha / b) B[:, :b] A[:b] x with each replica's b; in evaluation rank r whatever was drawn."""
    model, method = dylora(tiny_roberta, frozen)
    full = model.eval()(**inputs()).logits
    for step in range(24):
        ranks = drawn(method, range(step, step + 1))[0].tolist()
        model.train()
        for layer in method.layers.values():
            x = samples(layer)
            assert same(layer.update(x), truncated(layer, x, ranks))
            assert ranks == [8, 8] or not same(layer.update(x), truncated(layer, x, [8, 8]))
        assert torch.equal(model.eval()(**inputs()).logits, full)
    for layer in method.layers.values():
        assert same(layer.update(samples(layer)), truncated(layer, samples(layer), [8, 8]))


def test_ranks_are_uniform_and_independent_between_seeds(tiny_roberta):
    """Over 4000 steps each rank of a seed, and each pair of ranks of two seeds, comes equally often."""
    _, method = dylora(tiny_roberta)
    ranks = drawn(method, range(4000)) - 1
    for seed in ranks.T:
        assert chisquare(torch.bincount(seed, minlength=8)).pvalue > 1e-4
    assert chisquare(torch.bincount(8 * ranks[:, 0] + ranks[:, 1], minlength=64)).pvalue > 1e-4


def test_ranks_depend_on_seed_and_step_alone(tiny_roberta):
    """Alone or packed, called once or for each micro-batch, in any order of steps, a seed's step draws one rank."""
    _, packed = dylora(tiny_roberta, seeds=[3, 5])
    _, alone = dylora(tiny_roberta, seeds=[5])
    ranks = drawn(packed, range(100))
    assert not torch.equal(ranks[:, 0], ranks[:, 1])
    assert torch.equal(ranks[:, 1:], drawn(alone, range(100)))
    torch.manual_seed(1)
    assert torch.equal(ranks.flip(0), drawn(packed, range(99, -1, -1)))
    assert torch.equal(drawn(packed, [7, 7, 7]), ranks[7].expand(3, 2))


def test_after_training_every_rank_is_scored(tiny_roberta):
    """`evaluate` sees the truncated update of ranks 1..r in turn; the report has each score; rank r is back after
    it."""
    model, method = dylora(tiny_roberta)
    layers = list(method.layers.values())
    drawn(method, range(1))
    calls = []

    def evaluate() -> list[dict | None]:
        model.eval()
        calls.append([layer.update(samples(layer)) for layer in layers])
        return [{"metrics": {"accuracy": len(calls) / 10}, "halves": []}, None]

    assert method.report(0) == {}
    method.after_training(evaluate)
    assert len(calls) == 8
    for rank, outputs in zip(RANKS, calls, strict=True):
        for layer, output in zip(layers, outputs, strict=True):
            assert same(output, truncated(layer, samples(layer), [rank, rank]))
            assert rank == 8 or not same(output, truncated(layer, samples(layer), [8, 8]))
    assert method.report(0) == {"metrics_by_rank": {rank: {"accuracy": rank / 10} for rank in RANKS}}
    assert method.report(1) == {"metrics_by_rank": dict.fromkeys(RANKS)}
    for layer in layers:
        assert same(layer.update(samples(layer)), truncated(layer, samples(layer), [8, 8]))


def test_the_last_report_of_a_run_has_the_metrics_of_every_rank(tiny_overrides):
    """The record's last epoch has ranks 1..8, rank 8 as the epoch's own metrics; the epochs before have none."""
    paths = run_point([*tiny_overrides, "task=stsb", "method=dylora", "epochs=3", "seeds=[0,1]", "lr=0.02"])
    assert len(paths) == 2
    for path in paths:
        *before, last = records.load(path).epochs
        assert [epoch["report"] for epoch in before] == [{}, {}]
        scores = last["report"]["metrics_by_rank"]
        assert list(scores) == [str(rank) for rank in RANKS]
        assert scores["8"] == last["metrics"]
        assert all(score.keys() == last["metrics"].keys() for score in scores.values())
        assert len({score["pearson"] for score in scores.values()}) == 8
