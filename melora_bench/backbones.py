"""The frozen models that are adapted: from a hub, from a local folder, or from the package index."""

import contextlib
import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from melora_bench.embedded import minilm_folder
from melora_bench.files import hub_snapshot, sha256_file

WEIGHTS = "model.safetensors"
FILES = ["config.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", WEIGHTS]


@dataclass(kw_only=True)
class Encoder:
    """A BERT-like model under a new classifier."""

    name: str
    repo: str | None  # the hub's repository; None: the embedded MiniLM
    revision: str | None
    path: str | None  # a local folder, instead of the hub
    target_modules: list[str]
    head: str  # the module whose linear layers are trained in full
    dropout: float | None  # of the backbone in training; None: as the model's own config has it
    seen: list[str]  # tasks whose texts the pre-training saw: tables mark these rows

    @functools.cached_property  # the hub is asked once, and every part comes from one commit
    def folder(self) -> tuple[Path, str | None]:
        """The checkpoint's folder and the hub's commit. Raises ValueError when it cannot be had."""
        if self.path:
            for name in ("config.json", "tokenizer.json", WEIGHTS):
                if not (Path(self.path) / name).is_file():
                    raise ValueError(
                        f"backbone.path={self.path} holds no {name}: name a transformers checkpoint folder"
                    )
            return Path(self.path), None
        if self.repo is None:
            return minilm_folder(), None
        offline = f"offline, use backbone.path=DIR with a copy of {self.repo}, or backbone=minilm"
        return hub_snapshot(self.repo, self.revision, kind="model", patterns=FILES, offline=offline)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        folder = self.folder[0]
        with self._loading(folder):
            return AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def model(self, num_labels: int) -> nn.Module:
        """The model with `num_labels` outputs (1: regression). Raises ValueError for a folder without weights."""
        folder = self.folder[0]
        rates = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
        dropout = {} if self.dropout is None else dict.fromkeys(rates, self.dropout)
        with self._loading(folder):
            model, report = AutoModelForSequenceClassification.from_pretrained(
                folder,
                num_labels=num_labels,
                local_files_only=True,
                dtype=torch.float32,
                output_loading_info=True,
                **dropout,
            )
        absent = {
            key for key in report["missing_keys"] | report["mismatched_keys"] if not str(key).startswith(self.head)
        }
        if absent:
            raise ValueError(
                f"backbone {self.name}: {folder} lacks weights of this architecture, {min(map(str, absent))} first"
            )
        if self.head not in dict(model.named_modules()):
            there = ", ".join(name for name, _ in model.named_children())
            raise ValueError(f"backbone.head={self.head!r} is no module of {self.name}: it has {there}")
        return model

    def longest(self, model: nn.Module) -> int:
        """The number of tokens that the model has positions for; RoBERTa's start after the padding id."""
        offset = model.config.pad_token_id + 1 if "roberta" in model.config.model_type else 0
        return model.config.max_position_embeddings - offset

    @contextlib.contextmanager
    def _loading(self, folder: Path):
        try:
            yield
        except Exception as error:  # transformers, safetensors and tokenizers each raise their own
            raise ValueError(f"backbone {self.name}: {folder} does not load ({str(error).splitlines()[0]})") from error

    def origin(self) -> dict:
        """What the record says of the weights: the hub's commit, if they came from it, and the file's sha256."""
        folder, commit = self.folder
        return {"name": self.name, "repo": self.repo, "commit": commit, "sha256": sha256_file(folder / WEIGHTS)}
