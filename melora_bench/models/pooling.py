"""What the head of a classifier reads of a row: one vector, of padded batches and of streams."""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput

from melora_bench.models.rows import Rows
from melora_bench.models.streams import prepare_streams, takes_streams

POOLINGS = ("first", "mean", "last")


def pool_rows(model: PreTrainedModel, pooling: str | None) -> None:
    """Let an encoder's head read one vector per row: of padded batches and, where this kind of model can, of streams.

    pooling None: as the model's own head does, from the first token. first, mean, last: the row's first token, the mean
    over its tokens or its last token, without the pooling layer that the model may have. Raises ValueError for another.
    """
    _check(pooling)
    prepare_streams(model)
    if pooling:
        model.base_model.pooler = None
    if takes_streams(model) or pooling:
        model.base_model.register_forward_hook(functools.partial(_pooled, pooling), with_kwargs=True)


def classify_rows(model: PreTrainedModel, pooling: str, head: str) -> None:
    """Let the linear layer `head` of a decoder's classifier read one vector per row, picked by the attention mask.

    The model's own forward picks the last token that is not the padding id. That token would depend on the row's
    company where the tokenizer pads with another id than the config's, or where a text holds that id. Raises ValueError
    for another pooling than first, mean and last.
    """
    _check(pooling)
    model.forward = functools.partial(_classified, model, pooling, head)


def pooled(hidden: Tensor, pooling: str, *, mask: Tensor | None = None, rows: Rows | None = None) -> Tensor:
    """One vector per row, (rows, width): of padded tokens (rows, length, width) with their mask (rows, length), or of
    streams (R, T, width) with `rows`."""
    if rows is not None:
        tokens = hidden.flatten(0, 1)
        if pooling == "mean":
            means = torch.segment_reduce(tokens.float(), "mean", lengths=rows.lengths, unsafe=True)
            return means[rows.is_row].to(hidden.dtype)
        return tokens.index_select(0, rows.first if pooling == "first" else rows.last)
    mask = torch.ones(hidden.shape[:2], device=hidden.device) if mask is None else mask
    if pooling == "mean":
        weight = mask.float() / mask.sum(1, keepdim=True)
        return (weight[:, None] @ hidden.float())[:, 0].to(hidden.dtype)
    places = (mask if pooling == "first" else mask.cumsum(1)).argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), places]


def _check(pooling: str | None) -> None:
    if pooling not in (None, *POOLINGS):
        names = ", ".join(POOLINGS)
        raise ValueError(f"backbone.pooling={pooling!r} is unknown: use {names}, or null for the model's own head")


def _pooled(pooling: str | None, body: nn.Module, _: Any, given: dict, output: Any) -> Any:
    """The body's output as its head wants it: last_hidden_state (rows, 1, width), pooler_output (rows, width)."""
    rows, hidden = given.get("rows"), output.last_hidden_state
    if pooling:
        vectors = pooled(hidden, pooling, mask=given.get("attention_mask"), rows=rows)
        return BaseModelOutputWithPooling(last_hidden_state=vectors[:, None], pooler_output=vectors)
    if rows is None:
        return output
    first = pooled(hidden, "first", rows=rows)[:, None]
    pooler = getattr(body, "pooler", None)
    return BaseModelOutputWithPooling(last_hidden_state=first, pooler_output=pooler(first) if pooler else None)


def _classified(model: PreTrainedModel, pooling: str, head: str, **inputs: Any) -> SequenceClassifierOutput:
    hidden = model.base_model(**inputs, use_cache=False).last_hidden_state
    vectors = pooled(hidden, pooling, mask=inputs.get("attention_mask"))
    return SequenceClassifierOutput(logits=model.get_submodule(head)(vectors))
