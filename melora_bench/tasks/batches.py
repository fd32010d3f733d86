"""Which rows share a batch: the order of an epoch, the batches of a packed run, and those of an evaluation."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from melora_bench.models.rows import Rows
from melora_bench.seeding import generator
from melora_bench.tasks.splits import Split

Batch = dict[str, Any]  # tensors by name and, in streams, `rows`: where each row lies (Rows)


def epoch_order(lengths: np.ndarray, *, seed: int, epoch: int, batch_size: int, bucket: int) -> list[np.ndarray]:
    """The batches of one epoch, as row numbers, drawn from (seed, epoch) alone.

    A random permutation is cut into chunks of `bucket` batches; within a chunk, rows of like length share a batch and
    the batches are shuffled. That last shuffle depends on the epoch alone, so the i-th batches of all seeds are about
    equally long and packed replicas pad little. bucket=1 is plain random order.
    """
    order = torch.randperm(len(lengths), generator=generator(seed, "order", epoch)).numpy()
    shuffle = generator("batches", epoch)
    batches = []
    for chunk in np.split(order, range(bucket * batch_size, len(order), bucket * batch_size)):
        chunk = chunk[np.argsort(-lengths[chunk], kind="stable")]
        parts = np.split(chunk, range(batch_size, len(chunk), batch_size))
        batches += [parts[i] for i in torch.randperm(len(parts), generator=shuffle)]
    return batches


@dataclass(frozen=True, kw_only=True)
class TrainBatches:
    """The batches of a packed run: in each, replica k's rows follow seed k's own order."""

    split: Split
    seeds: list[int]
    batch_size: int  # rows per replica and optimizer step, over all processes and micro-batches
    bucket: int
    accumulation: int  # micro-batches per optimizer step
    first_position: int | None = None  # of every row in streams; None: padded batches
    processes: int = 1
    process: int = 0

    def steps(self, first: int, end: int) -> Iterator[list[Batch]]:
        """The optimizer steps `first` to `end`, without `end`, counted over all epochs."""
        count = -(-len(self.split.labels) // self.batch_size)
        for epoch in range(first // count, -(-end // count)):
            yield from self.epoch(epoch, max(0, first - epoch * count), min(count, end - epoch * count))

    def epoch(self, epoch: int, first: int = 0, end: int | None = None) -> Iterator[list[Batch]]:
        """For each optimizer step of an epoch, or of a part of it, its micro-batches of (R * b) rows for this process.

        `weight` (R * b,) makes the weighted sum of row losses the mean over the whole step's rows of a replica (each
        row counting by the split's `weights`), after the division by `accumulation` and the averaging over processes
        that accelerate does. Parts of unequal size are filled up with rows of weight 0.
        """
        options = {"epoch": epoch, "batch_size": self.batch_size, "bucket": self.bucket}
        orders = [epoch_order(self.split.lengths, seed=seed, **options) for seed in self.seeds]
        parts = self.accumulation * self.processes
        for step in itertools.islice(zip(*orders, strict=True), first, end):
            rows = np.stack(step)  # (R, rows of this step)
            size = -(-rows.shape[1] // parts)
            weight = np.zeros((len(rows), parts * size), dtype=np.float32)
            share = np.ones_like(rows, np.float32) if self.split.weights is None else self.split.weights[rows]
            weight[:, : rows.shape[1]] = parts * share / np.maximum(share.sum(1, keepdims=True), 1)
            rows = np.pad(rows, ((0, 0), (0, weight.shape[1] - rows.shape[1])), mode="edge")
            indices = range(self.process, parts, self.processes)
            yield [self._micro_batch(rows[:, i::parts], weight[:, i::parts]) for i in indices]

    def _micro_batch(self, rows: np.ndarray, weight: np.ndarray) -> Batch:
        batch = self.split.batch(rows, self.first_position)
        return batch | {"weight": torch.from_numpy(weight.reshape(-1).copy())}


def count_tokens(batch: Batch) -> int:
    """How many tokens the rows of a batch have, without padding or filler."""
    rows: Rows | None = batch.get("rows")
    return int(batch["attention_mask"].sum() if rows is None else rows.lengths[rows.is_row].sum())


def evaluation_batches(
    split: Split,
    batch_size: int,
    *,
    replicas: int = 1,
    first_position: int | None = None,
    process: int = 0,
    processes: int = 1,
) -> Iterator[tuple[np.ndarray, Batch]]:
    """(row numbers, batch) in order of length; each of R replicas gets all rows of a batch, as streams or padded
    (`Split.batch`). All processes have equally many batches: one that has no rows left over for the last gets the
    longest of it again."""
    order = np.argsort(-split.lengths, kind="stable")
    for start in range(0, len(order), processes * batch_size):
        together = order[start : start + processes * batch_size]
        rows = together[process::processes]
        rows = rows if len(rows) else together[:1]
        yield rows, split.batch(np.tile(rows, (replicas, 1)), first_position)
