"""What every backbone shares: where its checkpoint comes from, how the checkpoint is loaded,
and what a record says of it."""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from melora_bench.external.embedded import OPTION
from melora_bench.external.hub import hub_snapshot
from melora_bench.files import options
from melora_bench.models.weights import config_sha256, joined_sha256, weight_files

FILES = ["*.json", "vocab*", "merges.txt", "tokenizer*", "*.model", "*.safetensors"]
TOKENIZER = ("tokenizer*", "*tokens*.json", "vocab*", "merges.txt")  # what AutoTokenizer reads, beside the config
# A model's folder is data: nothing is fetched for it, and no code in it is run.
AS_DATA = {"local_files_only": True, "trust_remote_code": False}


@dataclass(kw_only=True)
class Backbone:
    """A checkpoint and where it comes from. Its fields are the keys of configs/backbone/<name>.yaml."""

    embedded: ClassVar[Callable[[], Path]]  # the folder of the one from the package index
    auto: ClassVar[Any]  # the transformers class that loads it
    kind: ClassVar[str]  # PEFT's name for what it does
    alternative: ClassVar[str]  # to a checkpoint that cannot be fetched
    name: str
    repo: str | None  # the hub's repository; None: the embedded model
    revision: str | None
    path: str | None  # a local folder, instead of the hub
    target_modules: list[str] | str  # name endings of the linear layers to adapt, or all-linear
    dropout: float | None  # of the backbone in training; None: as the model's own config has it
    seen: list[str]  # tasks whose texts the pre-training saw: tables mark these rows
    head: str | list[str]  # the module, or modules, whose linear layers are trained in full; "" or []: none
    packs: bool = True  # False: one seed at a time, as its layers get inputs that all rows share
    pooling: str | None = None  # what a classifier reads of a row: `models.pooling`; None: as the model's own head does

    def for_task(self, num_labels: int) -> "Backbone":
        """The backbone as a task with so many labels (0: none) needs it. Raises ValueError for a task that this kind of
        model cannot learn."""
        raise NotImplementedError

    @functools.cached_property  # the hub is asked once, and every part comes from one commit
    def folder(self) -> tuple[Path, str | None]:
        """The checkpoint's folder and the hub's commit. Raises ValueError when it cannot be had."""
        return self._get(FILES)

    def _get(self, patterns: list[str]) -> tuple[Path, str | None]:
        if self.path:
            for name in ("config.json", "tokenizer.json", "*.safetensors"):
                if not any(Path(self.path).glob(name)):
                    raise ValueError(
                        f"backbone.path={self.path} holds no {name}: name a transformers checkpoint folder"
                    )
            return Path(self.path), None
        if self.repo is None:
            return type(self).embedded(), None
        offline = f"offline, use backbone.path=DIR with a copy of {self.repo}, or {self.alternative}"
        folder, commit = hub_snapshot(self.repo, self.revision, kind="model", patterns=patterns, offline=offline)
        if patterns is FILES and not any(folder.glob("*.safetensors")):  # a pickle is neither fetched nor read
            raise ValueError(
                f"{self.repo} at {self.revision!r} has no *.safetensors: use backbone.path=DIR with a copy of it "
                "that `save_pretrained` wrote, or a backbone.revision that has them"
            )
        return folder, commit

    def tokenizer(self, *, alone: bool = False) -> PreTrainedTokenizerBase:
        """alone: of the hub's files, fetch no weights. Raises ValueError as `folder` does."""
        folder = (self._get(FILES[:-1]) if alone else self.folder)[0]
        with self._loading(folder):
            return AutoTokenizer.from_pretrained(folder, **AS_DATA)

    def max_tokens(self, model: PreTrainedModel) -> int:
        """The number of tokens that the model has positions for; some kinds have no limit."""
        return getattr(model.config, "max_position_embeddings", sys.maxsize) - self.first_position(model)

    def first_position(self, model: PreTrainedModel) -> int:
        """The position of a row's first token: 0, in RoBERTa and its kin the number after the padding id."""
        return getattr(getattr(model.base_model, "embeddings", None), "padding_idx", -1) + 1

    def load(self, **options: Any) -> tuple[PreTrainedModel, set[str]]:
        """(model, names of the weights that the folder lacks); its dropouts are `dropout` where that is given. Raises
        ValueError for a folder that does not load."""
        folder = self.folder[0]
        weight_files(folder)
        with self._loading(folder):
            config = AutoConfig.from_pretrained(folder, **AS_DATA)
            rates = {} if self.dropout is None else dict.fromkeys(dropouts(config), self.dropout)
            model, report = self.auto.from_pretrained(
                folder, use_safetensors=True, output_loading_info=True, **AS_DATA, **options, **rates
            )
        return model, {str(key) for key in report["missing_keys"] | report["mismatched_keys"]}

    def model(self, num_labels: int) -> PreTrainedModel:
        """The model that is adapted, with `num_labels` outputs (1: regression; 0: its own output layer). Raises
        ValueError for a folder without weights, or for weights that cannot be had in the form that the fields ask
        for."""
        raise NotImplementedError

    def stock(self, num_labels: int) -> PreTrainedModel:
        """The model as transformers alone makes it. Raises ValueError as `model` does."""
        return self.model(num_labels)

    def refuse_absent(self, absent: set[str]) -> None:
        """Raises ValueError for names of weights that the folder lacks and the model needs."""
        if absent:
            raise ValueError(
                f"backbone {self.name}: {self.folder[0]} lacks weights of this architecture, {min(absent)} first"
            )

    @contextlib.contextmanager
    def _loading(self, folder: Path) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # transformers, safetensors and tokenizers each raise their own
            raise ValueError(f"backbone {self.name}: {folder} does not load ({str(error).splitlines()[0]})") from error

    def origin(self) -> dict:
        """What the record says of the checkpoint: the hub's commit, if it came from there, and the sha256 of its
        weights, its config and its tokenizer's files (of several files, the sha256 of their joined hashes). Raises
        ValueError as `weight_files` does, and for a config that is no JSON.

        Weights in a user's folder that were given no name are named after the public weights with the same sha256, or
        else after their sha256, as they may be other weights than those that configs/backbone describes.
        """
        folder, commit = self.folder
        of_files = {
            "sha256": joined_sha256(weight_files(folder)),
            "config_sha256": config_sha256(folder),
            "tokenizer_sha256": joined_sha256(sorted({path for pattern in TOKENIZER for path in folder.glob(pattern)})),
        }
        if not self.path:
            return {"name": self.name, "repo": self.repo, "commit": commit, **of_files}
        known = OPTION.get(of_files["sha256"], f"local-{of_files['sha256'][:10]}")
        name = known if self.name in options("backbone") else self.name
        return {"name": name, "repo": None, "commit": None, **of_files}


def dropouts(config: PretrainedConfig) -> list[str]:
    """The keys of a model's config that are rates of dropout; of whole layers (layerdrop) there may be other rates.

    >>> dropouts(PretrainedConfig(hidden_dropout_prob=0.1, attn_pdrop=0.1, layerdrop=0.1, classifier_dropout=None))
    ['attn_pdrop', 'classifier_dropout', 'hidden_dropout_prob']
    """
    rates = {key: value for key, value in config.to_dict().items() if "dropout" in key or key.endswith("pdrop")}
    return sorted(key for key, value in rates.items() if value is None or type(value) in (int, float))
