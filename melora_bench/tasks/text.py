"""Classifying a text or a pair of texts, or rating it: the eight GLUE tasks, movie and tweets."""

import logging
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from melora_bench.files import sha256_file
from melora_bench.tasks import metrics
from melora_bench.tasks.base import Source
from melora_bench.tasks.rows import load_rows
from melora_bench.tasks.splits import Split, tokenise

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class TextTask:
    """One text task. Its fields are the keys of configs/task/<name>.yaml."""

    version: int  # raised when a code change changes numbers; part of the config hash
    name: str
    text: list[str]  # the text columns: one, or two for pairs
    num_labels: int  # 1: regression
    label_range: list[float]  # the lowest and the highest label that may occur
    metric: str  # the score that selects and is reported
    metrics: list[str]  # all that are recorded, `metric` among them
    train_split: str
    # With several, `metric` is their mean, or that of one set: accuracy_matched of validation_matched.
    eval_splits: list[str]
    splits: dict[str, Split] = field(default_factory=dict, init=False, repr=False)

    def load(
        self, source: Source, tokenizer, *, max_length: int, max_train_rows: int | None, max_eval_rows: int | None
    ) -> dict:
        """Read and tokenise every split; returns what the record says of each: {split: {rows, sha256, ...} or None}.

        An evaluation split that `metric` does not need may be missing, which is logged. Raises ValueError for bad files
        or labels.
        """
        metrics.check(self.metrics)
        needed = {split for split in self.eval_splits if self.metric in self._metrics_of(split)}
        if not needed:
            raise ValueError(f"task.metric={self.metric!r} must be one of task.metrics={self.metrics}")
        origins = {}
        for split in (self.train_split, *self.eval_splits):
            training = split == self.train_split
            limit = max_train_rows if training else max_eval_rows
            optional = not training and split not in needed
            rows = load_rows(source, self.name, split, self.text, limit, optional=optional)
            origins[split] = rows and rows.origin
            if rows is None:
                log.warning("%s: the %s set is missing: it is not scored and not part of the mean", self.name, split)
                continue
            self._check_labels(rows.labels, split)
            labels = rows.labels.astype(np.float32 if self.num_labels == 1 else np.int64)
            self.splits[split] = tokenise(tokenizer, rows.texts, labels, max_length)
        return origins

    def sha256(self, source: Source) -> dict[str, list[str] | None]:
        """By split, the sha256 of each of its files; None for one that is missing. Raises ValueError as `load` does."""
        by_split = {split: source.split_files(self.name, split) for split in (self.train_split, *self.eval_splits)}
        return {split: [sha256_file(path) for path in files.paths] or None for split, files in by_split.items()}

    @property
    def train(self) -> Split:
        return self.splits[self.train_split]

    @property
    def evaluation(self) -> dict[str, Split]:
        return {name: self.splits[name] for name in self.eval_splits if name in self.splits}

    def loss(self, model: nn.Module, batch: dict[str, Tensor], replicas: int) -> Tensor:
        """(R,): per replica, the weighted sum of its rows' losses (cross-entropy, or squared error for regression)."""
        logits = self.outputs(model, batch).float()
        if self.num_labels == 1:
            rows = F.mse_loss(logits.squeeze(-1), batch["labels"], reduction="none")
        else:
            rows = F.cross_entropy(logits, batch["labels"], reduction="none")
        return (rows * batch["weight"]).view(replicas, -1).sum(1)

    def outputs(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """(rows, num_labels): what `score` needs of each row, here the logits."""
        return model(**{name: value for name, value in batch.items() if name not in ("labels", "weight")}).logits

    def score(self, logits: dict[str, np.ndarray], half: int | None = None) -> dict[str, float]:
        """One replica's metrics from the logits (rows, num_labels) of each evaluation split.

        half 0 or 1 scores one of two fixed halves of every split, each with the same share of every label, so that a
        table can select on one and report the other.
        """
        scores: dict[str, float] = {}
        for name, split in self.evaluation.items():
            values, labels = logits[name], split.labels
            if half is not None:
                chosen = halves(labels) == half
                values, labels = values[chosen], labels[chosen]
            predictions = values[:, 0] if self.num_labels == 1 else values.argmax(1)
            values_of = metrics.compute(self.metrics, predictions, labels)
            scores |= {key + _suffix(name): value for key, value in values_of.items()}
        for key in self.metrics if len(self.eval_splits) > 1 else []:
            scores[key] = float(np.mean([value for name, value in scores.items() if name.startswith(f"{key}_")]))
        return {key: round(value, 6) for key, value in scores.items()}

    def _metrics_of(self, split: str) -> list[str]:
        """The metrics that cannot be computed without an evaluation split: its own, and the means over all splits."""
        return [*self.metrics, *(key + _suffix(split) for key in self.metrics)]

    def _check_labels(self, labels: np.ndarray, split: str) -> None:
        low, high = self.label_range
        wrong = ~((labels >= low) & (labels <= high))
        if self.num_labels > 1:
            wrong |= labels != np.floor(labels)
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(
                f"{self.name}: label {labels[row]:g} in row {row} of the {split} split is outside {low:g} to {high:g}: "
                "is this a labelled split in the hub's label order?"
            )


def _suffix(split: str) -> str:
    """What the names of metrics on one of several evaluation splits end in."""
    return split.removeprefix("validation")


def halves(labels: np.ndarray) -> np.ndarray:
    """(rows,) of 0 and 1: a fixed split in two in which every label, or range of scores, has an equal share."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).numpy()
    order = order[np.argsort(labels[order], kind="stable")]
    half = np.empty(len(labels), dtype=np.int64)
    half[order] = np.arange(len(labels)) % 2
    return half
