"""Rows without padding: the tokens of a replica's rows as one stream; attention alone is told where each row ends.

A batch of R replicas is (R, T) tokens, T one more than the longest replica's sum of row lengths. Embedding, linear
layers, norms and adapters see tokens and compute no padding. Attention looks within each row: on a GPU by torch's
kernels for rows of any length, elsewhere in a few groups of rows of like length. The model's head gets one vector per
row (`models.pooling`).
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from melora_bench.models.rows import Rows

# The kinds of model that are known to give the same outputs as with padding: by transformers' model_type.
KINDS = frozenset({"bert", "roberta", "xlm-roberta", "camembert", "electra"})
ATTENTION = "melora_bench_rows"


class _Move(torch.autograd.Function):
    """x[there]; the gradient is grad[back]. Where `there` repeats a token,
    or `back` a slot, the gradients there are 0."""

    @staticmethod
    def forward(ctx, x: Tensor, there: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return x.index_select(0, there)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.index_select(0, *ctx.saved_tensors), None, None


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    rows: Rows | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: (R, heads, T, width) each -> (R, T, heads, width).
    Without `rows` it is sdpa."""
    if rows is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    replicas, heads, size, width = query.shape
    tokens = [x.transpose(1, 2).reshape(replicas * size, -1, width) for x in (query, key, value)]
    within = _on_gpu if query.is_cuda else _in_groups
    out = within(tokens[0], tokens[1], tokens[2], rows, dropout, scaling)
    return out.view(replicas, size, heads, width), None


def _in_groups(query: Tensor, key: Tensor, value: Tensor, rows: Rows, dropout: float, scaling: float | None) -> Tensor:
    """(R * T, heads, width) each -> the same."""
    sizes = [count * length for count, length in rows.shapes]
    moved = [_Move.apply(x, rows.slots, rows.places).split([*sizes, 1]) for x in (query, key, value)]
    outputs = []
    for (count, length), mask, *parts in zip(rows.shapes, rows.masks, *(parts[:-1] for parts in moved), strict=True):
        q, k, v = (x.view(count, length, *x.shape[1:]).transpose(1, 2) for x in parts)
        out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scaling)
        outputs.append(out.transpose(1, 2).reshape(count * length, *query.shape[1:]))
    outputs.append(query.new_zeros(1, *query.shape[1:]))
    return _Move.apply(torch.cat(outputs), rows.places, rows.slots)


def _on_gpu(query: Tensor, key: Tensor, value: Tensor, rows: Rows, dropout: float, scaling: float | None) -> Tensor:
    """The same by the kernels that nested tensors use: flash attention in half precision from compute capability 8 on,
    else memory-efficient attention."""
    half = query.dtype in (torch.float16, torch.bfloat16)
    if half and torch.cuda.get_device_capability(query.device) >= (8, 0):
        return torch.ops.aten._flash_attention_forward(
            query, key, value, rows.ends, rows.ends, rows.longest, rows.longest, dropout, False, False, scale=scaling
        )[0]
    ends, longest = (rows.ends, rows.ends), (rows.longest, rows.longest)
    return torch.ops.aten._efficient_attention_forward(
        query[None], key[None], value[None], None, *ends, *longest, dropout, 0, True, scale=scaling
    )[0][0]


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def takes_streams(model: PreTrainedModel) -> bool:
    """Whether `prepare_streams` prepared the model for streams: for `input_ids` (R, T) with `rows`."""
    return model.config._attn_implementation == ATTENTION


def check_layout(layout: str, model: PreTrainedModel, device: torch.device) -> bool:
    """Whether batches are streams, in training and evaluation: by themselves on a CPU alone, as on a GPU nobody has
    measured them yet.

    Raises ValueError for an unknown layout, and for streams that the model cannot take.
    """
    if layout not in ("auto", "streams", "padded"):
        raise ValueError(f"layout={layout!r} is unknown: use auto, streams or padded")
    if layout == "streams" and not takes_streams(model):
        known = ", ".join(sorted(KINDS))
        raise ValueError(
            f"layout=streams is known to be right for {known}, not for {model.config.model_type}: use layout=auto"
        )
    return layout == "streams" or (layout == "auto" and takes_streams(model) and device.type == "cpu")


def prepare_streams(model: PreTrainedModel) -> None:
    """Let attention look within the rows of streams, where this kind of model can."""
    if model.config.model_type in KINDS and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(ATTENTION)
