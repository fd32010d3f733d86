"""Scoring R replicas on a task's evaluation splits, on every process a part of the rows."""

from collections.abc import Callable

import numpy as np
from accelerate.utils import gather_object
from torch import Tensor

from melora_bench.tasks.base import Task
from melora_bench.tasks.batches import Batch, TrainBatches, evaluation_batches
from melora_bench.tasks.splits import Split


def collect_outputs(
    splits: dict[str, Split],
    outputs: Callable[[Batch], Tensor],
    *,
    like: TrainBatches,
    batch_size: int,
) -> dict[str, np.ndarray]:
    """By split, (R, rows, numbers per row) in the order of its rows, in every process.

    `outputs` gives (R * rows, numbers per row) for one evaluation batch. The batches have the replicas, the layout and
    the processes of the training batches `like`.
    """
    replicas = len(like.seeds)
    collected: dict[str, np.ndarray] = {}
    for name, split in splits.items():
        on_device = []
        batches = evaluation_batches(
            split,
            batch_size,
            replicas=replicas,
            first_position=like.first_position,
            process=like.process,
            processes=like.processes,
        )
        for rows, batch in batches:
            on_device.append((rows, outputs(batch).view(replicas, len(rows), -1)))
        parts = [(rows, values.cpu().numpy()) for rows, values in on_device]
        parts = gather_object(parts) if like.processes > 1 else parts
        order = np.unique(np.concatenate([rows for rows, _ in parts]), return_index=True)[1]  # some come twice
        collected[name] = np.concatenate([values for _, values in parts], axis=1)[:, order]
    return collected


def score(task: Task, outputs: dict[str, np.ndarray]) -> dict | None:
    """One replica's scores from its outputs (rows, numbers per row) of each split; None if an output is not finite."""
    if not all(np.isfinite(values).all() for values in outputs.values()):
        return None
    return {"metrics": task.score(outputs), "halves": [task.score(outputs, half=half) for half in (0, 1)]}
