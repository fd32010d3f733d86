"""One look before training: whether the longest row runs, and whether a row's outputs are its own."""

import numpy as np
import torch
from torch import Tensor

from melora_bench.tasks.splits import Split
from melora_bench.training.trainer import Trainer

# How far outputs of the same row may lie apart, by precision, relative to the largest of them.
ROUNDING = {"no": 1e-3, "bf16": 0.2, "fp16": 0.2}


@torch.no_grad()
def probe(trainer: Trainer, backbone: str) -> None:
    """Score the longest and the shortest row alone and side by side.

    Raises ValueError, saying what would do, for a row that the model cannot read, and where a row's outputs depend on
    the other's.
    """
    split = max(trainer.task.splits.values(), key=lambda split: int(split.lengths.max()))
    rows = [int(split.lengths.argmax()), int(split.lengths.argmin())]
    alone = torch.cat([_outputs(trainer, backbone, split, [row]) for row in rows], dim=1)
    together = _outputs(trainer, backbone, split, rows)
    gap = ((together - alone).abs().max() / alone.abs().max().clamp(min=1e-6)).item()
    if gap > ROUNDING[trainer.accelerator.mixed_precision]:
        streams = trainer.batches.first_position is not None
        instead = "give layout=padded" if streams else "give batch_size=1 and eval_batch_size=1, or another backbone"
        raise ValueError(
            f"backbone {backbone}: the outputs of a row of {split.lengths[rows[1]]} tokens change by {gap:.2g} of "
            f"their size beside one of {split.lengths[rows[0]]}: {instead}"
        )


def _outputs(trainer: Trainer, backbone: str, split: Split, rows: list[int]) -> Tensor:
    """(R, rows, numbers per row)"""
    batch = split.batch(np.tile(rows, (trainer.replicas, 1)), trainer.batches.first_position)
    try:
        return trainer.outputs(batch).view(trainer.replicas, len(rows), -1)
    except (ValueError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a model's own: an index beyond its positions, a shape that it does not expect
        tokens = int(split.lengths[rows].max())
        why = str(error).partition("\n")[0]
        raise ValueError(
            f"backbone {backbone} does not read a row of {tokens} tokens ({why}): "
            "lower max_length, or use another backbone"
        ) from error
