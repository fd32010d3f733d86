"""The tokens that all prompts of a subject begin with, encoded once, and batches behind them."""

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from melora_bench.instructeval.language_model import LanguageModel


def encode_shared(model: LanguageModel, rows: list[list[int]]) -> tuple[int, DynamicCache | None]:
    """How many first tokens all rows share (a subject's header and shots), each keeping one of its own, and the model's
    keys and values of them; 0 and None where nothing is to gain, or the model keeps something else."""
    if len(rows) < 2:
        return 0, None
    first, last = min(rows), max(rows)  # in the order of lists, so that what these two share all share
    least = min(map(len, rows)) - 1
    shared = next((place for place in range(least) if first[place] != last[place]), least)
    if shared < 1:
        return 0, None
    ids = torch.tensor([first[:shared]], device=model.device)
    cache: Any = getattr(model.base_model(ids, use_cache=True), "past_key_values", None)
    # A window of the last tokens would count the padding in the middle.
    windowed = getattr(model.config, "attention_layers", None)
    plain = type(cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in cache.layers) and not windowed
    return (shared, cache) if plain else (0, None)


def repeated(cache: DynamicCache | None, rows: int) -> DynamicCache | None:
    """A copy for a batch: generating adds to it."""
    if cache is None:
        return None
    cache = copy.deepcopy(cache)
    cache.batch_repeat_interleave(rows)
    return cache


def pad_left(rows: list[list[int]], shared: int, padding: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """ids and attention mask, both (rows, longest), padded after the first `shared` tokens of each."""
    longest = max(map(len, rows))
    ids = [[*row[:shared], *[padding] * (longest - len(row)), *row[shared:]] for row in rows]
    mask = [[1] * shared + [0] * (longest - len(row)) + [1] * (len(row) - shared) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
