"""Token ids in flat arrays, and batches of them: padded to their own longest row, or streams without padding."""

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from melora_bench.external.notices import warn_once
from melora_bench.files import cache_dir, sha256_json, write_atomic
from melora_bench.models.streams import Rows
from melora_bench.seeding import generator


@dataclass(frozen=True, kw_only=True)
class Split:
    """A tokenised split: row i is ids[offsets[i]:offsets[i + 1]]."""

    ids: np.ndarray  # (tokens,) int32
    types: np.ndarray | None  # (tokens,) uint8: token_type_ids, where the model has them
    offsets: np.ndarray  # (rows + 1,) int64
    labels: np.ndarray  # (rows,) int64 classes, float32 scores, or what else a task needs of a row
    pad_id: int
    weights: np.ndarray | None = None  # (rows,) float32: a row's share in the loss of its step; None: all alike
    left: bool = False  # pad on the left

    @functools.cached_property  # asked for with every batch, as long as the whole split
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def collate(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Row numbers (rows,) -> input_ids, attention_mask, labels and, where the model has them, token_type_ids."""
        lengths = self.lengths[rows]
        mask = np.arange(lengths.max()) < lengths[:, None]
        mask = mask[:, ::-1] if self.left else mask
        where = np.concatenate([np.arange(self.offsets[row], self.offsets[row + 1]) for row in rows])
        ids = np.full(mask.shape, self.pad_id, dtype=np.int64)
        ids[mask] = self.ids[where]
        batch = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask.astype(np.int64))}
        if self.types is not None:
            types = np.zeros(mask.shape, dtype=np.int64)
            types[mask] = self.types[where]
            batch["token_type_ids"] = torch.from_numpy(types)
        return batch | {"labels": torch.from_numpy(self.labels[rows])}

    def stream(self, rows: np.ndarray, first_position: int) -> dict[str, Tensor | Rows]:
        """Row numbers (R, rows) -> input_ids, position_ids and, where the model has them, token_type_ids, each (R, T), with
        `rows` (where each row lies) and labels (R * rows,). A row's positions count from `first_position`."""
        where = Rows.of(self.lengths[rows])
        tokens = np.concatenate([np.arange(self.offsets[row], self.offsets[row + 1]) for row in rows.reshape(-1)])
        inside = where.is_row.repeat_interleave(where.lengths)
        starts = where.ends[:-1].repeat_interleave(where.lengths)

        def laid_out(values: np.ndarray, filler: int) -> Tensor:
            out = torch.full(inside.shape, filler)
            out[inside] = torch.from_numpy(values[tokens].astype(np.int64))
            return out.view(len(rows), -1)

        positions = torch.where(inside, torch.arange(len(inside)) - starts, 0) + first_position
        batch = {"input_ids": laid_out(self.ids, self.pad_id), "position_ids": positions.view(len(rows), -1)}
        if self.types is not None:
            batch["token_type_ids"] = laid_out(self.types, 0)
        return batch | {"rows": where, "labels": torch.from_numpy(self.labels[rows.reshape(-1)])}


def tokenise(tokenizer, columns: list[list[str]], labels: np.ndarray, max_length: int) -> Split:
    """Tokenise the text columns (one, or two for pairs), cut to `max_length` tokens; cached by content."""
    tokenizer.backend_tokenizer.no_truncation()  # an earlier call leaves its own limit there, which would change the key
    tokenizer.backend_tokenizer.no_padding()
    settings = [max_length, tokenizer.model_input_names, tokenizer.backend_tokenizer.to_str()]
    place = ("tokens", f"{sha256_json(['v2', *settings, columns])}.npz")
    arrays = _stored(place, len(columns[0]))
    if arrays is None:
        encoded = tokenizer(*columns, truncation=True, max_length=max_length, return_attention_mask=False)
        offsets = np.cumsum([0, *map(len, encoded["input_ids"])])
        arrays = {"ids": np.concatenate(encoded["input_ids"]).astype(np.int32), "offsets": offsets}
        if "token_type_ids" in encoded:
            arrays["types"] = np.concatenate(encoded["token_type_ids"]).astype(np.uint8)
        _store(place, arrays)
    return Split(types=arrays.pop("types", None), **arrays, labels=labels, pad_id=pad_id(tokenizer, arrays["ids"]))


def _stored(place: tuple[str, str], rows: int) -> dict[str, np.ndarray] | None:
    """The arrays of the token cache; None if they are not there, or, with a warning, if they cannot be what was stored."""
    try:
        path = cache_dir().joinpath(*place)
        with np.load(path) as file:  # a zip archive: each array has a checksum
            arrays = dict(file)
        types = {key: (value.dtype.name, value.shape) for key, value in arrays.items()}
        tokens = int(arrays["offsets"][-1])
        wanted = {"ids": ("int32", (tokens,)), "offsets": ("int64", (rows + 1,)), "types": ("uint8", (tokens,))}
        if types != {key: wanted[key] for key in wanted.keys() & {"ids", "offsets", *types}}:
            raise ValueError(f"it holds {types}")
        return arrays
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:  # whatever zipfile and numpy raise for a damaged file
        warn_once(f"the token cache's {'/'.join(place)} is made anew: it is damaged ({error})")
        return None


def _store(place: tuple[str, str], arrays: dict[str, np.ndarray]) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)

    try:
        write_atomic(cache_dir().joinpath(*place), write)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        warn_once(f"no tokens are kept for the next run: the cache, $MELORA_BENCH_CACHE, cannot be written ({why})")


def pad_id(tokenizer, ids: Sequence[int]) -> int:
    """What fills up the rows that hold `ids`: the padding token or, without one, the end token. An id above all of theirs may
    lie outside the model's embedding: padding is masked, so the first of theirs then does as well."""
    highest = np.max(ids, initial=0)
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((id for id in known if id is not None and id <= highest), int(ids[0]) if len(ids) else 0)


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

    def steps(self, first: int, end: int) -> Iterator[list[dict[str, Tensor]]]:
        """The optimizer steps `first` to `end`, without `end`, counted over all epochs."""
        count = -(-len(self.split.labels) // self.batch_size)
        for epoch in range(first // count, -(-end // count)):
            yield from self.epoch(epoch, max(0, first - epoch * count), min(count, end - epoch * count))

    def epoch(self, epoch: int, first: int = 0, end: int | None = None) -> Iterator[list[dict[str, Tensor]]]:
        """For each optimizer step of an epoch, or of a part of it, its micro-batches of (R * b) rows for this process.

        `weight` (R * b,) makes the weighted sum of row losses the mean over the whole step's rows of a replica (each row
        counting by the split's `weights`), after the division by `accumulation` and the averaging over processes that
        accelerate does. Parts of unequal size are filled up with rows of weight 0.
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
            mine = range(self.process, parts, self.processes)
            yield [self._micro_batch(rows[:, i::parts], weight[:, i::parts]) for i in mine]

    def _micro_batch(self, rows: np.ndarray, weight: np.ndarray) -> dict[str, Tensor]:
        if self.first_position is None:
            batch = self.split.collate(rows.reshape(-1))
        else:
            batch = self.split.stream(rows, self.first_position)
        return batch | {"weight": torch.from_numpy(weight.reshape(-1).copy())}


def count_tokens(batch: dict[str, Tensor | Rows]) -> int:
    """How many tokens the rows of a batch have, without padding or filler."""
    rows = batch.get("rows")
    return int(batch["attention_mask"].sum() if rows is None else rows.lengths[rows.is_row].sum())


def evaluation_batches(
    split: Split, batch_size: int, process: int, processes: int
) -> Iterator[tuple[np.ndarray, dict]]:
    """(row numbers, batch) in order of length. All processes have equally many batches: one that has no rows left over for
    the last gets the longest of it again."""
    order = np.argsort(-split.lengths, kind="stable")
    for start in range(0, len(order), processes * batch_size):
        together = order[start : start + processes * batch_size]
        rows = together[process::processes]
        rows = rows if len(rows) else together[:1]
        yield rows, split.collate(rows)
