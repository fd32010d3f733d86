"""Tokenised splits: token ids in flat arrays, cached by content, and the batches that rows of them make."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from melora_bench.external.notices import warn_once
from melora_bench.files import cache_dir, sha256_json, write_atomic
from melora_bench.models.rows import Rows


@dataclass(frozen=True, kw_only=True)
class Split:
    """A tokenised split: row i is ids[offsets[i]:offsets[i + 1]]."""

    ids: np.ndarray  # (tokens,) int32
    types: np.ndarray | None  # (tokens,) uint8: token_type_ids, where the model has them
    offsets: np.ndarray  # (rows + 1,) int64
    labels: np.ndarray  # (rows,) int64 classes, float32 scores, or what else a task needs of a row
    pad_id: int
    weights: np.ndarray | None = None  # (rows,) float32: a row's share in the loss of its step; None: all alike

    @functools.cached_property  # asked for with every batch, as long as the whole split
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def batch(self, rows: np.ndarray, first_position: int | None) -> dict[str, Any]:
        """Row numbers (R, rows) of R replicas -> their batch: streams whose rows' positions count from
        `first_position`, or for None padded rows, those of replica 0 first."""
        return self.collate(rows.reshape(-1)) if first_position is None else self.stream(rows, first_position)

    def collate(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Row numbers (rows,) -> input_ids, attention_mask, labels and, where the model has them, token_type_ids.

        Padding is on the right: a row's positions count from its first token in every kind of model, and in a causal
        one its tokens never see padding.
        """
        lengths = self.lengths[rows]
        mask = np.arange(lengths.max()) < lengths[:, None]
        where = np.concatenate([np.arange(self.offsets[row], self.offsets[row + 1]) for row in rows])
        ids = np.full(mask.shape, self.pad_id, dtype=np.int64)
        ids[mask] = self.ids[where]
        batch = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask.astype(np.int64))}
        if self.types is not None:
            types = np.zeros(mask.shape, dtype=np.int64)
            types[mask] = self.types[where]
            batch["token_type_ids"] = torch.from_numpy(types)
        return batch | {"labels": torch.from_numpy(self.labels[rows])}

    def stream(self, rows: np.ndarray, first_position: int) -> dict[str, Any]:
        """Row numbers (R, rows) -> input_ids, position_ids and, where the model has them, token_type_ids, each (R, T),
        with `rows` (where each row lies) and labels (R * rows,). A row's positions count from `first_position`."""
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


def unended(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """The tokens of texts that are to be continued: without what the tokenizer itself puts after a text, such as an
    end token; what it puts before one stays."""
    if not texts:  # which a tokenizer does not take
        return []
    special = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
    after = special[::-1].index(0) if 0 in special else 0
    rows = tokenizer(texts, return_attention_mask=False, verbose=False)["input_ids"]
    return [ids[: len(ids) - after] for ids in rows]


def tokenise(
    tokenizer: PreTrainedTokenizerBase,
    columns: list[list[str]],
    labels: np.ndarray,
    max_length: int,
    *,
    continued: bool = False,
) -> Split:
    """Tokenise the text columns (one, or two for pairs), cut to `max_length` tokens; cached by content. A text that is
    to be continued is one column, and has no end (`unended`)."""
    # An earlier call leaves its own limit there, which would change the key.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    settings = [max_length, tokenizer.model_input_names, tokenizer.backend_tokenizer.to_str()]
    place = ("tokens", f"{sha256_json(['v2', *settings, columns, *['unended'] * continued])}.npz")
    arrays = _stored(place, len(columns[0]))
    if arrays is None:
        encoded: Mapping[str, Any]
        if continued:
            encoded = {"input_ids": [ids[:max_length] for ids in unended(tokenizer, columns[0])]}
        else:
            encoded = tokenizer(*columns, truncation=True, max_length=max_length, return_attention_mask=False)
        offsets = np.cumsum([0, *map(len, encoded["input_ids"])])
        arrays = {"ids": np.concatenate(encoded["input_ids"]).astype(np.int32), "offsets": offsets}
        if "token_type_ids" in encoded:
            arrays["types"] = np.concatenate(encoded["token_type_ids"]).astype(np.uint8)
        _store(place, arrays)
    ids, offsets = arrays["ids"], arrays["offsets"]
    return Split(ids=ids, types=arrays.get("types"), offsets=offsets, labels=labels, pad_id=pad_id(tokenizer, ids))


def _stored(place: tuple[str, str], rows: int) -> dict[str, np.ndarray] | None:
    """The arrays of the token cache; None if they are not there,
    or, with a warning, if they cannot be what was stored."""
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


def _store(place: tuple[str, str], arrays: dict[str, Any]) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)

    try:
        write_atomic(cache_dir().joinpath(*place), write)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        warn_once(f"no tokens are kept for the next run: the cache, $MELORA_BENCH_CACHE, cannot be written ({why})")


def pad_id(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int] | np.ndarray) -> int:
    """The id that fills up the rows that hold `ids`: the padding token's or, without one, the end token's. An id above
    every one of `ids` may lie outside the model's embedding; the first of `ids` then serves, as padding is masked."""
    highest = np.max(ids, initial=0)
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((id for id in known if id is not None and id <= highest), int(ids[0]) if len(ids) else 0)
