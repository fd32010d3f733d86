"""What training asks of a task, and a task of the source of its data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from melora_bench.tasks.splits import Split


@dataclass(frozen=True, kw_only=True)
class Files:
    """The files of one split, and what to record of their origin."""

    paths: list[Path]
    origin: dict[str, Any]
    absent: str = ""  # where there is no file: what is there instead, and what would do


class Source(Protocol):
    """Where data come from. Every method raises ValueError for what the source does not have."""

    def split_files(self, task: str, split: str) -> Files:
        """The files of one split of a text task; of a folder, perhaps none."""

    def single_file(self, name: str, repo: str, revision: str) -> tuple[Path, dict[str, Any]]:
        """The one file of rows of the task `name`, and what to record of its origin.
        `repo` and `revision` are the hub's."""

    def benchmark_folder(self) -> str | None:
        """The folder with one folder per benchmark; None: each benchmark has a repository of its own on the hub."""


class Task(Protocol):
    """What is learned and how it is scored. A task's fields are the keys of configs/task/<name>.yaml."""

    version: int  # raised when a code change changes numbers; part of the config hash
    name: str
    num_labels: int  # 0: the model's own output layer is kept; 1: regression
    metric: str  # the score that selects and is reported
    splits: dict[str, Split]  # what `load` has read

    @property
    def train(self) -> Split:
        """The split that is trained on."""

    @property
    def evaluation(self) -> dict[str, Split]:
        """The splits that are scored, by name."""

    def load(
        self,
        source: Source,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        max_train_rows: int | None,
        max_eval_rows: int | None,
    ) -> dict[str, dict | None]:
        """Read and tokenise every split; returns what the record says of each: {split: {rows, sha256, ...}, or None for
        a split that is missing}. Raises ValueError for files and rows that cannot be used."""

    def sha256(self, source: Source) -> dict[str, list[str] | None]:
        """By split, the sha256 of each of its files; None for one that is missing. Raises ValueError as `load` does."""

    def loss(self, model: nn.Module, batch: dict[str, Tensor], replicas: int) -> Tensor:
        """(R,): each replica's loss of a batch of R * b rows, weighted by the batch's `weight` (R * b,)."""

    def outputs(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """(rows, numbers per row): what `score` needs of each row."""

    def score(self, outputs: dict[str, np.ndarray], half: int | None = None) -> dict[str, float]:
        """One replica's metrics from the outputs (rows, numbers per row) of each evaluation split, over all rows or
        over one of two fixed halves, 0 or 1."""
