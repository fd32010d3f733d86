"""Rows without padding: the tokens of a replica's rows as one stream; attention alone is told where each row ends.

A batch of R replicas is (R, T) tokens, T one more than the longest replica's sum of row lengths. Embedding, linear layers,
norms and adapters see tokens and compute no padding. Attention looks within each row: on a GPU by torch's kernels for rows of
any length, elsewhere in a few groups of rows of like length. The model's head gets one vector per row (`pool_rows`).
"""

import functools
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling

GROUPS = 8  # of rows of like length, where attention is computed in groups
# The kinds of model that are known to give the same outputs as with padding: by transformers' model_type.
KINDS = frozenset({"bert", "roberta", "xlm-roberta", "camembert", "electra"})
ATTENTION = "melora_bench_rows"


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Where the rows of R streams lie. Token t of stream k has the number k * T + t; each stream's last token is filler."""

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

    def to(self, device: torch.device, **options) -> "Rows":
        tensors = {name: value.to(device, **options) for name, value in vars(self).items() if isinstance(value, Tensor)}
        masks = [mask if mask is None else mask.to(device, **options) for mask in self.masks]
        return replace(self, **tensors, masks=masks)


class _Move(torch.autograd.Function):
    """x[there]; the gradient is grad[back]. Where `there` repeats a token, or `back` a slot, the gradients there are 0."""

    @staticmethod
    def forward(ctx, x: Tensor, there: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return x.index_select(0, there)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.index_select(0, *ctx.saved_tensors), None, None


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    rows: Rows | None = None, dropout: float = 0.0, scaling: float | None = None, **options,
) -> tuple[Tensor, None]:  # fmt: skip
    """transformers' attention interface: (R, heads, T, width) each -> (R, T, heads, width). Without `rows` it is sdpa."""
    if rows is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    replicas, heads, size, width = query.shape
    tokens = [x.transpose(1, 2).reshape(replicas * size, -1, width) for x in (query, key, value)]
    within = _on_gpu if query.is_cuda else _in_groups
    return within(*tokens, rows, dropout, scaling).view(replicas, size, heads, width), None


def _in_groups(query: Tensor, key: Tensor, value: Tensor, rows: Rows, dropout: float, scaling: float | None) -> Tensor:
    """(R * T, heads, width) each -> the same."""
    sizes = [count * length for count, length in rows.shapes]
    moved = [_Move.apply(x, rows.slots, rows.places).split([*sizes, 1]) for x in (query, key, value)]
    outputs = []
    for (count, length), mask, *parts in zip(rows.shapes, rows.masks, *(parts[:-1] for parts in moved), strict=True):
        parts = [x.view(count, length, *x.shape[1:]).transpose(1, 2) for x in parts]
        out = nn.functional.scaled_dot_product_attention(*parts, attn_mask=mask, dropout_p=dropout, scale=scaling)
        outputs.append(out.transpose(1, 2).reshape(count * length, *query.shape[1:]))
    outputs.append(query.new_zeros(1, *query.shape[1:]))
    return _Move.apply(torch.cat(outputs), rows.places, rows.slots)


def _on_gpu(query: Tensor, key: Tensor, value: Tensor, rows: Rows, dropout: float, scaling: float | None) -> Tensor:
    """The same by the kernels that nested tensors use: flash attention in half precision from compute capability 8 on, else
    memory-efficient attention."""
    half = query.dtype in (torch.float16, torch.bfloat16)
    if half and torch.cuda.get_device_capability(query.device) >= (8, 0):
        return torch.ops.aten._flash_attention_forward(
            query, key, value, rows.ends, rows.ends, rows.longest, rows.longest, dropout, False, False, scale=scaling
        )[0]
    return torch.ops.aten._efficient_attention_forward(
        query[None], key[None], value[None], None, rows.ends, rows.ends, rows.longest, rows.longest, dropout, 0, True,
        scale=scaling,
    )[0][0]  # fmt: skip


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def takes_streams(model: nn.Module) -> bool:
    """Whether `pool_rows` prepared the model for streams: for `input_ids` (R, T) with `rows`."""
    return model.config._attn_implementation == ATTENTION


def check_layout(layout: str, model: nn.Module, device: torch.device) -> bool:
    """Whether training batches are streams: by themselves on a CPU alone, as on a GPU nobody has measured them yet.

    Raises ValueError for an unknown layout, and for streams that the model cannot take.
    """
    if layout not in ("auto", "streams", "padded"):
        raise ValueError(f"layout={layout!r} is unknown: use auto, streams or padded")
    if layout == "streams" and not takes_streams(model):
        raise ValueError(f"layout=streams is known to be right for {', '.join(sorted(KINDS))}, not for "
                         f"{model.config.model_type}: use layout=auto")  # fmt: skip
    return layout == "streams" or (layout == "auto" and takes_streams(model) and device.type == "cpu")


def pool_rows(model: nn.Module, pooling: str | None) -> None:
    """Let the model's head read one vector per row: of padded batches and, where this kind of model can, of streams.

    pooling None: as the model's own head does, from the first token. mean: the mean over the row's tokens, without the
    pooling layer that the model may have. Raises ValueError for another pooling.
    """
    if pooling not in (None, "mean"):
        raise ValueError(f"backbone.pooling={pooling!r} is unknown: use mean, or null for the model's own head")
    if model.config.model_type in KINDS and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(ATTENTION)
    body = model.base_model
    if pooling == "mean":
        body.pooler = None
    if takes_streams(model) or pooling:
        body.register_forward_hook(functools.partial(_pooled, pooling), with_kwargs=True)


def _pooled(pooling: str | None, body: nn.Module, _, given: dict, output):
    """The body's output as its head wants it: last_hidden_state (rows, 1, width), pooler_output (rows, width)."""
    rows, hidden = given.get("rows"), output.last_hidden_state
    if pooling == "mean":
        pooled = _means(hidden, rows) if rows else _padded_means(hidden, given["attention_mask"])
        return BaseModelOutputWithPooling(last_hidden_state=pooled[:, None], pooler_output=pooled)
    if rows is None:
        return output
    first = hidden.flatten(0, 1).index_select(0, rows.first)[:, None]
    pooler = getattr(body, "pooler", None)
    return BaseModelOutputWithPooling(last_hidden_state=first, pooler_output=pooler(first) if pooler else None)


def _means(hidden: Tensor, rows: Rows) -> Tensor:
    """(R, T, width) -> (rows, width)"""
    tokens = hidden.flatten(0, 1)
    return torch.segment_reduce(tokens.float(), "mean", lengths=rows.lengths, unsafe=True)[rows.is_row].to(hidden.dtype)


def _padded_means(hidden: Tensor, mask: Tensor) -> Tensor:
    """(rows, length, width), (rows, length) -> (rows, width)"""
    weight = mask.float() / mask.sum(1, keepdim=True)
    return (weight[:, None] @ hidden.float())[:, 0].to(hidden.dtype)
