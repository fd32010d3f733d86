"""Batches: every row once, weights that make means, packed replicas that see what they would see alone, caches."""

import itertools

import numpy as np
import pytest
import torch
from conftest import WORDS, sentences
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import AutoTokenizer, DataCollatorWithPadding

from melora_bench.files import cache_dir
from melora_bench.tasks import splits
from melora_bench.tasks.batches import TrainBatches, epoch_order, evaluation_batches
from melora_bench.tasks.splits import Split, tokenise

check = settings(deadline=None, derandomize=True)
SEED = st.integers(0, 2**31)
SHAPE = st.tuples(st.integers(1, 200), st.integers(1, 17), st.integers(1, 6))  # rows, batch size, bucket


def skewed(rows: int, seed: int = 0) -> np.ndarray:
    """Lengths as texts have them: many short, few long."""
    return (4 + np.random.default_rng(seed).lognormal(2.5, 0.8, rows)).astype(np.int64)


def numbered(rows: int) -> Split:
    """A split of random lengths in which the label of a row is its number, and so is its every token."""
    lengths = skewed(rows)
    offsets = np.concatenate([[0], lengths.cumsum()])
    ids = np.repeat(np.arange(rows), lengths).astype(np.int32)
    return Split(ids=ids, types=None, offsets=offsets, labels=np.arange(rows), pad_id=-1)


def order(lengths: np.ndarray, seed: int = 0, epoch: int = 0, batch_size: int = 8, bucket: int = 4) -> list[np.ndarray]:
    return epoch_order(lengths, seed=seed, epoch=epoch, batch_size=batch_size, bucket=bucket)


def padding(lengths: np.ndarray, order: list[np.ndarray]) -> int:
    return sum(lengths[rows].max() * len(rows) - lengths[rows].sum() for rows in order)


@check
@given(SHAPE, SEED, st.integers(0, 50))
def test_an_epoch_has_every_row_once_in_full_batches_but_one(shape, seed, epoch):
    rows, batch_size, bucket = shape
    found = order(skewed(rows), seed, epoch, batch_size, bucket)
    assert sorted(np.concatenate(found)) == list(range(rows))
    short = [rows % batch_size] if rows % batch_size else []
    assert sorted(map(len, found)) == short + [batch_size] * (rows // batch_size)


@check
@given(SHAPE, SEED, SEED, st.integers(0, 50))
def test_batch_sizes_are_those_of_every_other_seed(shape, seed, other, epoch):
    rows, batch_size, bucket = shape
    first, second = (order(skewed(rows), s, epoch, batch_size, bucket) for s in (seed, other))
    assert [len(batch) for batch in first] == [len(batch) for batch in second]


@check
@given(SEED, st.integers(0, 50), st.integers(1, 6))
def test_order_depends_on_seed_and_epoch_alone(seed, epoch, bucket):
    lengths = skewed(60)
    first = np.concatenate(order(lengths, seed, epoch, bucket=bucket))
    torch.manual_seed(epoch)  # the global stream is not read ...
    state = torch.get_rng_state()
    order(lengths, seed + 1, epoch, bucket=bucket)
    assert (np.concatenate(order(lengths, seed, epoch, bucket=bucket)) == first).all()
    assert (torch.get_rng_state() == state).all()  # ... and not moved
    assert (np.concatenate(order(lengths, seed + 1, epoch, bucket=bucket)) != first).any()
    assert (np.concatenate(order(lengths, seed, epoch + 1, bucket=bucket)) != first).any()


def test_bucket_one_is_plain_random_order():
    """Which rows share a batch does not depend on their lengths."""
    first, second = order(skewed(100), bucket=1), order(skewed(100, seed=1), bucket=1)
    assert [set(batch) for batch in first] == [set(batch) for batch in second]


def shared_rows(first: list[np.ndarray], second: list[np.ndarray]) -> int:
    """How many rows two orders have in the same step, over all steps."""
    return sum(len(np.intersect1d(a, b)) for a, b in zip(first, second, strict=True))


def shared_pairs(first: list[np.ndarray], second: list[np.ndarray], rows: int) -> int:
    """How many pairs of rows meet in a batch of both orders."""
    step = np.empty((2, rows), dtype=np.int64)
    for side, found in enumerate((first, second)):
        for number, batch in enumerate(found):
            step[side, batch] = number
    met = [one[:, None] == one[None] for one in step]
    return int((met[0] & met[1]).sum() - rows) // 2


@check
@given(st.integers(0, 1000), st.integers(0, 50))
def test_seeds_and_epochs_meet_rows_as_chance_has_it(seed, epoch):
    """640 rows in 20 batches of 32. A row is in the same step of two independent orders with probability 1/20 (mean 32,
    sd 5.7: the count is a sum of hypergeometric ones); a pair that met meets again with probability 31/639 (9,920
    pairs: mean 481, sd 21.4). Six sd are allowed, in one example of 10^9; with rows of like length together the counts
    are several times as large."""
    lengths = skewed(640)
    here, other, later = (
        order(lengths, s, e, batch_size=32, bucket=1) for s, e in ((seed, epoch), (seed + 1, epoch), (seed, epoch + 1))
    )
    for two in (other, later):
        assert abs(shared_rows(here, two) - 32) < 6 * 5.7
        assert abs(shared_pairs(here, two, 640) - 481) < 6 * 21.4


def test_grouping_by_length_is_seen_by_that_test():
    lengths = skewed(640)
    here, other = (order(lengths, s, batch_size=32, bucket=50) for s in (0, 1))
    assert shared_rows(here, other) > 10 * 32 and shared_pairs(here, other, 640) > 5 * 481


@check
@given(SEED, st.integers(0, 50), st.integers(4, 40))
def test_buckets_pad_less(seed, epoch, bucket):
    lengths = skewed(512)
    plain = padding(lengths, order(lengths, seed, epoch, bucket=1))
    bucketed = padding(lengths, order(lengths, seed, epoch, bucket=bucket))
    assert bucketed < 0.6 * plain  # measured: 0.33 to 0.44 at bucket 4, 0.06 to 0.11 at 40


@check
@given(SEED, SEED, st.integers(0, 50))
def test_batches_of_two_seeds_have_like_lengths(seed, other, epoch):
    """Exactly alike when one bucket holds all rows; nearly so when there are several."""
    lengths = skewed(512)
    first, second = (order(lengths, s, epoch, bucket=64) for s in (seed, other))
    for a, b in zip(first, second, strict=True):
        assert (np.sort(lengths[a]) == np.sort(lengths[b])).all()
    means = [[lengths[rows].mean() for rows in order(lengths, s, epoch, bucket=16)] for s in (seed, other)]
    assert np.corrcoef(np.log(means))[0, 1] > 0.8  # measured: 0.96 and more; 0 if each seed shuffled its own batches


def test_no_epoch_leads_with_the_long_batches():
    """Batches are shuffled in a bucket: the longest one is elsewhere in other epochs."""
    lengths = skewed(256)
    longest = {int(np.argmax([lengths[b].max() for b in order(lengths, 0, e, bucket=32)])) for e in range(20)}
    assert len(longest) > 5


@check
@given(
    rows=st.integers(1, 70),
    batch_size=st.integers(1, 20),
    accumulation=st.sampled_from([1, 3, 4]),
    processes=st.sampled_from([1, 2]),
    seeds=st.sampled_from([[0], [3, 1], [0, 1, 2]]),
    epoch=st.integers(0, 3),
)
def test_weights_make_the_mean_over_a_step(rows, batch_size, accumulation, processes, seeds, epoch):
    split = numbered(rows)
    value = np.random.default_rng(1).normal(size=rows)  # a loss for every row
    shared = {"split": split, "seeds": seeds, "batch_size": batch_size, "bucket": 3, "accumulation": accumulation}
    per_process = [
        list(TrainBatches(**shared, processes=processes, process=process).epoch(epoch)) for process in range(processes)
    ]
    orders = [order(split.lengths, seed, epoch, batch_size, 3) for seed in seeds]
    assert {len(steps) for steps in per_process} == {-(-rows // batch_size)}
    for step, parts in enumerate(zip(*per_process, strict=True)):
        assert [len(part) for part in parts] == [accumulation] * processes
        total = np.zeros(len(seeds))
        seen: list[list[int]] = [[] for _ in seeds]
        for batch in itertools.chain(*parts):
            labels, weights = (batch[key].numpy().reshape(len(seeds), -1) for key in ("labels", "weight"))
            assert labels.shape[1] >= 1
            assert all(set(labels[k]) <= set(orders[k][step]) for k in range(len(seeds)))  # fillers pad no wider
            total += (weights * value[labels]).sum(1) / (accumulation * processes)  # as accumulate and DDP divide
            for k in range(len(seeds)):
                seen[k] += labels[k][weights[k] > 0].tolist()
        for k in range(len(seeds)):
            assert sorted(seen[k]) == sorted(orders[k][step])
            assert total[k] == pytest.approx(value[orders[k][step]].mean(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_packed_replicas_get_the_rows_of_their_own_runs(accumulation):
    shared = {"split": numbered(53), "batch_size": 8, "bucket": 3, "accumulation": accumulation}
    packed = list(TrainBatches(**shared, seeds=[4, 0, 7]).epoch(2))
    for k, seed in enumerate([4, 0, 7]):
        alone = list(TrainBatches(**shared, seeds=[seed]).epoch(2))
        for ours, its in zip(packed, alone, strict=True):
            for a, b in zip(ours, its, strict=True):
                rows = slice(k * len(b["labels"]), (k + 1) * len(b["labels"]))
                width = b["input_ids"].shape[1]
                assert torch.equal(a["labels"][rows], b["labels"])
                assert torch.equal(a["weight"][rows], b["weight"])
                assert torch.equal(a["input_ids"][rows, :width], b["input_ids"])
                assert torch.equal(a["attention_mask"][rows, :width], b["attention_mask"])
                assert not a["attention_mask"][rows, width:].any()


@check
@given(st.integers(1, 90), st.integers(1, 20), st.integers(1, 4))
def test_evaluation_covers_each_row_and_processes_keep_step(rows, batch_size, processes):
    """A row comes twice only where a process has none left for the last batch."""
    split = numbered(rows)
    found, counts = [], []
    for process in range(processes):
        parts = {"process": process, "processes": processes}
        counts.append(len(list(evaluation_batches(split, batch_size, **parts))))
        for numbers, batch in evaluation_batches(split, batch_size, **parts):
            assert 1 <= len(numbers) <= batch_size
            assert (batch["labels"].numpy() == numbers).all()
            assert batch["input_ids"].shape[1] == split.lengths[numbers].max()
            found += numbers.tolist()
    assert len(set(counts)) == 1 and sorted(set(found)) == list(range(rows))
    assert len(found) - rows == max(0, processes - (rows - 1) % (processes * batch_size) - 1)


# ---- tokenising


@pytest.fixture
def tokenizer(tiny_roberta):
    return AutoTokenizer.from_pretrained(tiny_roberta)


@pytest.fixture
def typed_tokenizer(tokenizer):
    """One that gives the second text another type, as BERT's does."""
    ends = [("<s>", 0), ("</s>", 2)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=ends
    )
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return tokenizer


@pytest.fixture
def calls(tokenizer, monkeypatch) -> list[int]:
    """Grows by one whenever a tokenizer is called."""
    made, original = [], type(tokenizer).__call__

    def counted(self, *args, **kwargs):
        made.append(1)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(type(tokenizer), "__call__", counted)
    return made


def texts(count: int, seed: int = 0) -> list[str]:
    return [text for text, _ in sentences(count, seed)]


def one_row(tokenizer, row: tuple[str, ...], max_length: int) -> dict[str, list[int]]:
    """As a batch of one: transformers takes a lone empty second text for none."""
    encoded = tokenizer(*([text] for text in row), truncation=True, max_length=max_length)
    return {key: value[0] for key, value in encoded.items()}


@pytest.mark.parametrize("kind", ["tokenizer", "typed_tokenizer"])
@pytest.mark.parametrize("columns", [1, 2])
def test_tokens_and_padding_are_those_of_transformers(kind, columns, request):
    tokenizer = request.getfixturevalue(kind)
    data = [[*texts(20, seed), "", "unseen words"] for seed in range(columns)]
    split = tokenise(tokenizer, data, np.arange(22), max_length=10)
    assert split.lengths.max() == 10  # some are cut
    alone = [one_row(tokenizer, row, max_length=10) for row in zip(*data, strict=True)]
    for i, row in enumerate(alone):
        part = slice(split.offsets[i], split.offsets[i + 1])
        assert split.ids[part].tolist() == row["input_ids"]
        if kind == "typed_tokenizer":
            assert split.types[part].tolist() == row["token_type_ids"]
    rows = np.array([3, 20, 3, 11, 0])
    expected = DataCollatorWithPadding(tokenizer)([{**alone[i], "label": i} for i in rows])
    found = split.collate(rows)
    assert set(found) == set(expected)
    for key, value in found.items():
        assert value.dtype == expected[key].dtype
        assert torch.equal(value, expected[key]), key
    if kind == "typed_tokenizer":
        assert found["token_type_ids"].any() == (columns == 2)


def test_scores_keep_their_type(tokenizer):
    split = tokenise(tokenizer, [texts(5)], np.array([0, 2.5, 5, 1, 3], dtype=np.float32), max_length=16)
    assert split.collate(np.array([1, 4]))["labels"].tolist() == [2.5, 3.0]
    assert split.collate(np.array([1]))["labels"].dtype == torch.float32


def test_a_second_call_reads_the_cache(tokenizer, calls):
    first = tokenise(tokenizer, [texts(9, seed=5)], np.arange(9), max_length=16)
    assert len(calls) == 1
    again = tokenise(tokenizer, [texts(9, seed=5)], np.arange(9) + 1, max_length=16)
    assert len(calls) == 1
    assert (again.ids == first.ids).all()
    assert (again.offsets == first.offsets).all()
    assert again.labels.tolist() == list(range(1, 10))  # labels are the caller's, not the cache's


def test_the_splits_of_a_task_are_cached_whichever_came_first(tiny_roberta, calls):
    """A later process that finds the training rows cached must find the validation rows too."""
    for _ in range(2):
        tokenizer = AutoTokenizer.from_pretrained(tiny_roberta)
        for seed in (6, 7):
            tokenise(tokenizer, [texts(9, seed)], np.arange(9), max_length=16)
    assert len(calls) == 2


def test_what_changes_tokens_is_another_entry(tokenizer, calls):
    data = [texts(9, seed=8)]
    lengths = [tokenise(tokenizer, data, np.arange(9), max_length=n).lengths.max() for n in (6, 12, 6)]
    assert lengths == [6, 12, 6]
    tokenise(tokenizer, [data[0][::-1]], np.arange(9), max_length=6)
    tokenizer.add_tokens(["unheard"])
    tokenise(tokenizer, data, np.arange(9), max_length=6)
    assert len(calls) == 4


@pytest.mark.parametrize(
    "data",
    [
        ([["good film"]], [["good "], ["film"]]),
        ([["a", "bad"], ["", "film"]], [["a", ""], ["bad", "film"]]),
        ([["a", "b"], ["c", "d"]], [["a", "bc"], ["", "d"]]),
    ],
    ids=["one or two columns", "rows", "column ends"],
)
def test_texts_cut_elsewhere_are_another_entry(tiny_roberta, data):
    for columns in data:
        tokenizer = AutoTokenizer.from_pretrained(tiny_roberta)
        split = tokenise(tokenizer, columns, np.arange(len(columns[0])), max_length=16)
        for i, row in enumerate(zip(*columns, strict=True)):
            expected = one_row(tokenizer, row, max_length=16)["input_ids"]
            assert split.ids[split.offsets[i] : split.offsets[i + 1]].tolist() == expected


def test_token_types_are_part_of_the_entry(tiny_roberta):
    """Two models may share a vocabulary and differ in their inputs."""
    data = [texts(4, seed=9)]
    for names in (["input_ids"], ["input_ids", "token_type_ids"]):
        tokenizer = AutoTokenizer.from_pretrained(tiny_roberta, model_input_names=names)
        split = tokenise(tokenizer, data, np.arange(4), max_length=16)
        assert (split.types is not None) == ("token_type_ids" in names)


def test_a_failed_write_leaves_no_entry(tokenizer, monkeypatch):
    before = set((cache_dir() / "tokens").glob("*"))

    def broken(file, **arrays):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(splits.np, "savez", broken)
    split = tokenise(tokenizer, [[*WORDS, "no space"]], np.arange(len(WORDS) + 1), max_length=16)
    assert len(split.lengths) == len(WORDS) + 1  # the tokens are used all the same
    assert set((cache_dir() / "tokens").glob("*")) == before
