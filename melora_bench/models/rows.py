"""Where rows of text lie in streams of tokens without padding, one stream per replica."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

GROUPS = 8  # of rows of like length, where attention is computed in groups


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Where the rows of R streams lie. Token t of stream k has the number k * T + t;
    each stream's last token is filler."""

    first: Tensor  # (rows,) the number of each row's first token; rows of replica 0, then of replica 1, ..
    lengths: Tensor  # (rows + R,) of all rows, and after each replica's of its filler
    ends: Tensor  # (rows + R + 1,) int32: 0, then the number after each of these
    longest: int  # of `lengths`
    is_row: Tensor  # (rows + R,) False: filler
    shapes: list[tuple[int, int]]  # rows and slots per row of each group
    slots: Tensor  # (slots + 1,) the number of the token in each slot of the groups, laid out one after another
    places: Tensor  # (R * T,) the slot of each token; the last one for filler
    masks: list[Tensor | None]  # of each group, (rows, 1, 1, slots per row): False where a slot holds filler

    @classmethod
    def of(cls, lengths: np.ndarray) -> "Rows":
        """The rows of lengths (R, rows per replica)."""
        replicas, count = lengths.shape
        size = int(lengths.sum(1).max()) + 1
        filler = size - lengths.sum(1)
        everything = np.concatenate([lengths, filler[:, None]], axis=1).reshape(-1)
        ends = np.concatenate([[0], np.cumsum(everything)])
        is_row = np.tile(np.arange(count + 1) < count, replicas)
        first, of_rows = ends[:-1][is_row], lengths.reshape(-1)
        spare = np.repeat(np.arange(1, replicas + 1) * size - 1, count)  # the last token of each row's own stream
        shapes, slots, masks = [], [], []
        for rows in np.array_split(np.argsort(-of_rows, kind="stable"), min(GROUPS, of_rows.size)):
            longest = int(of_rows[rows[0]])
            inside = np.arange(longest) < of_rows[rows, None]
            slots.append(np.where(inside, first[rows, None] + np.arange(longest), spare[rows, None]).reshape(-1))
            shapes.append((len(rows), longest))
            masks.append(None if inside.all() else torch.from_numpy(inside[:, None, None]))
        flat = np.concatenate([*slots, [replicas * size - 1]])
        places = np.full(replicas * size, len(flat) - 1)
        inside = ~np.isin(flat, np.arange(1, replicas + 1) * size - 1)
        places[flat[inside]] = np.flatnonzero(inside)
        return cls(
            first=torch.from_numpy(first),
            lengths=torch.from_numpy(everything),
            ends=torch.from_numpy(ends.astype(np.int32)),
            longest=int(everything.max()),
            is_row=torch.from_numpy(is_row),
            shapes=shapes,
            slots=torch.from_numpy(flat),
            places=torch.from_numpy(places),
            masks=masks,
        )

    @property
    def last(self) -> Tensor:
        """(rows,) the number of each row's last token."""
        return self.first + self.lengths[self.is_row] - 1

    def to(self, device: torch.device, **options: Any) -> "Rows":
        """The same on another device; `options` are those of Tensor.to."""
        moved: dict[str, Any] = {
            name: value.to(device, **options) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        masks = [mask if mask is None else mask.to(device, **options) for mask in self.masks]
        return replace(self, **moved, masks=masks)
