"""Streams without padding against padded batches: the same outputs and gradients, whatever the lengths."""

import copy

import numpy as np
import pytest
import torch
import transformers
from conftest import run_point
from helpers import curves
from hypothesis import given, settings
from hypothesis import strategies as st

from melora_bench.models.backbones import Encoder
from melora_bench.models.pooling import pool_rows
from melora_bench.models.streams import KINDS, check_layout, takes_streams
from melora_bench.tasks.batches import count_tokens, evaluation_batches
from melora_bench.tasks.splits import Split

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 70,
    "num_labels": 3,
}


def model(kind: str, **config) -> torch.nn.Module:
    """A tiny random classifier in evaluation."""
    torch.manual_seed(0)
    made = transformers.AutoConfig.for_model(kind, **SIZES, **config)
    return transformers.AutoModelForSequenceClassification.from_config(made).eval()


def split(lengths: list[int], types: bool, pad_id: int) -> Split:
    source, offsets = np.random.default_rng(0), np.concatenate([[0], np.cumsum(lengths)])
    ids = source.integers(5, 50, size=offsets[-1]).astype(np.int32)
    kinds = source.integers(0, 2, size=offsets[-1]).astype(np.uint8) if types else None
    return Split(ids=ids, types=kinds, offsets=offsets, labels=np.arange(len(lengths)), pad_id=pad_id)


def both(adapted: torch.nn.Module, lengths: list[int], replicas: int) -> tuple[dict, dict]:
    """The same rows, `replicas` times in other orders: as streams and padded."""
    rows = split(lengths, adapted.config.model_type in ("bert", "electra"), adapted.config.pad_token_id)
    chosen = np.stack([np.random.default_rng(k).permutation(len(lengths)) for k in range(replicas)])
    first = Encoder.first_position(None, adapted)
    batches = rows.stream(chosen, first), rows.collate(chosen.reshape(-1))
    assert (batches[0].pop("labels") == batches[1].pop("labels")).all()
    return batches


@pytest.mark.parametrize("pooling", [None, "mean"])
@pytest.mark.parametrize("kind", sorted(KINDS))
@settings(max_examples=8, deadline=None)
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=20), replicas=st.integers(1, 3))
def test_streams_equal_padded_rows(kind, pooling, lengths, replicas):
    """Logits and every gradient, to float32's rounding."""
    ours = model(kind)
    pool_rows(ours, pooling)
    found = []
    for batch in both(ours, lengths, replicas):
        logits = ours(**batch).logits
        grads = torch.autograd.grad(logits.square().sum(), list(ours.parameters()), allow_unused=True)
        found.append([logits, *(grad for grad in grads if grad is not None)])
    for streamed, padded in zip(*found, strict=True):
        torch.testing.assert_close(streamed, padded, rtol=1e-4, atol=1e-6 * max(1.0, padded.abs().max().item()))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_without_pooling_padded_rows_are_the_stock_models(kind):
    stock, ours = model(kind), model(kind)
    pool_rows(ours, None)
    _, padded = both(ours, [3, 9, 1, 14], 1)
    torch.testing.assert_close(ours(**padded).logits, stock(**padded).logits, rtol=0, atol=0)


def test_mean_pooling_is_the_mean_over_a_rows_tokens():
    """By the stock body, row by row, without padding at all."""
    stock, ours = model("bert"), model("bert")
    pool_rows(ours, "mean")
    assert ours.bert.pooler is None
    lengths = [3, 9, 1, 14]
    for batch in both(ours, lengths, 2):
        logits = ours(**batch).logits
        rows = split(lengths, True, 0)
        order = np.concatenate([np.random.default_rng(k).permutation(4) for k in range(2)])
        for found, row in zip(logits, order, strict=True):
            alone = rows.collate(np.array([row]))
            alone.pop("labels")
            torch.testing.assert_close(found, stock.classifier(stock.bert(**alone).last_hidden_state[0].mean(0)))


def test_the_filler_of_a_stream_gets_no_gradient():
    """It enters no row: changing its tokens changes nothing, and the embeddings it reads get none."""
    ours = model("bert")
    pool_rows(ours, "mean")
    streams, _ = both(ours, [5, 9, 2], 2)
    rows = streams["rows"]
    filler = torch.repeat_interleave(~rows.is_row, rows.lengths).view(streams["input_ids"].shape)
    embedded = ours.get_input_embeddings()(streams.pop("input_ids")).detach().requires_grad_()
    first = ours(inputs_embeds=embedded, **streams).logits
    first.square().sum().backward()
    assert embedded.grad[filler].abs().max() == 0 < embedded.grad[~filler].abs().min()
    changed = embedded.detach().clone()
    changed[filler] = 7.0
    assert torch.equal(ours(inputs_embeds=changed, **streams).logits, first)


def test_a_replica_that_is_not_finite_leaves_the_others_alone():
    ours = model("roberta")
    pool_rows(ours, None)
    streams, _ = both(ours, [5, 9, 2, 30], 3)
    embedded = ours.get_input_embeddings()(streams.pop("input_ids")).detach()
    clean = ours(inputs_embeds=embedded, **streams).logits.view(3, 4, -1)
    embedded[1] = float("nan")
    broken = ours(inputs_embeds=embedded, **streams).logits.view(3, 4, -1)
    assert torch.equal(broken[[0, 2]], clean[[0, 2]]) and broken[1].isnan().all()


def test_tokens_of_both_layouts_are_counted_alike():
    ours, lengths = model("bert"), [5, 9, 2, 30]
    assert [count_tokens(batch) for batch in both(ours, lengths, 3)] == [3 * sum(lengths)] * 2


def test_first_position_is_what_the_embedding_says():
    """CamemBERT counts as RoBERTa does, whatever its name; BERT and ELECTRA from 0."""
    found = {kind: Encoder.first_position(None, model(kind)) for kind in sorted(KINDS)}
    assert found == {"bert": 0, "camembert": 2, "electra": 0, "roberta": 2, "xlm-roberta": 2}


def test_a_model_that_takes_no_streams_is_padded():
    other = model("distilbert", dim=32, n_layers=2, n_heads=4, hidden_dim=64)
    pool_rows(other, None)
    cpu = torch.device("cpu")
    assert not takes_streams(other) and not check_layout("auto", other, cpu)
    with pytest.raises(ValueError, match=r"layout=streams is known to be right for bert, .*, not for distilbert"):
        check_layout("streams", other, cpu)
    with pytest.raises(ValueError, match=r"layout='fast' is unknown: use auto, streams or padded"):
        check_layout("fast", other, cpu)
    with pytest.raises(ValueError, match=r"backbone\.pooling='max' is unknown: use first, mean, last, or null"):
        pool_rows(other, "max")


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("pooling", ["null", "mean"])
def test_a_run_is_the_same_in_both_layouts(tiny_overrides, tmp_path, pooling, accumulation):
    """Three seeds side by side, dropout 0: every loss and score; the layout is no part of the run's identity."""
    command = [
        *tiny_overrides,
        "method.lora_dropout=0",
        "backbone.dropout=0",
        "lr=0.01",
        "seeds=[0,1,2]",
        f"backbone.pooling={pooling}",
        f"accumulation={accumulation}",
    ]
    streams = run_point([*command, "layout=streams"])
    padded = run_point([*command, "layout=padded", f"results_dir={tmp_path}/padded", f"output_dir={tmp_path}/padded"])
    assert [path.name for path in streams] == [path.name for path in padded]
    for ours, theirs in zip(streams, padded, strict=True):
        for one, other in zip(curves(ours), curves(theirs), strict=True):
            assert one["train_loss"] == pytest.approx(other["train_loss"], abs=2e-6)
            assert one["metrics"] == other["metrics"]


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_every_replica_is_scored_on_all_rows_in_both_layouts(kind):
    """The i-th block of outputs is replica i's, row by row."""
    ours, lengths = model(kind), [5, 9, 2, 30, 1]
    pool_rows(ours, None)
    rows = split(lengths, kind == "bert", ours.config.pad_token_id)
    outputs = []
    for first in (None, Encoder.first_position(None, ours)):
        order, parts = [], []
        for numbers, batch in evaluation_batches(rows, 2, replicas=3, first_position=first):
            batch.pop("labels")
            order += numbers.tolist()
            parts.append(ours(**batch).logits.view(3, len(numbers), -1))
        assert order == [3, 1, 0, 2, 4]
        outputs.append(torch.cat(parts, 1))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(outputs[1][:1].expand(3, -1, -1), outputs[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layout", ["auto", "streams"])
def test_a_run_in_streams_pads_no_row(tiny_overrides, monkeypatch, layout):
    """Neither in training nor in evaluation; by itself on a CPU."""

    def refuse(*_):
        raise AssertionError("rows were padded")

    monkeypatch.setattr(Split, "collate", refuse)
    assert run_point([*tiny_overrides, "epochs=1", f"layout={layout}"])


def test_copies_pool_as_their_original():
    """`merge` copies the model: a copy's head reads the copy's rows."""
    ours = model("bert")
    pool_rows(ours, "mean")
    twin = copy.deepcopy(ours)
    with torch.no_grad():
        twin.bert.embeddings.word_embeddings.weight.mul_(2)
    _, padded = both(ours, [3, 9], 1)
    assert not torch.equal(twin(**padded).logits, ours(**padded).logits)
