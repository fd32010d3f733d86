"""The frozen models that are adapted: from a hub, from a local folder, or from the package index."""

import contextlib
import functools
import hashlib
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from melora_bench.external import shapes
from melora_bench.external.embedded import OPTION, minilm_folder, smollm2_folder
from melora_bench.external.hub import hub_snapshot
from melora_bench.files import options, sha256_json, sha256_once
from melora_bench.methods.attach import head_names
from melora_bench.models.streams import pool_rows

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FILES = ["*.json", "vocab*", "merges.txt", "tokenizer*", "*.model", "*.safetensors"]
TOKENIZER = ("tokenizer*", "*tokens*.json", "vocab*", "merges.txt")  # what AutoTokenizer reads, beside the config
WRITER = {"transformers_version", "_name_or_path"}  # keys of a config that say who wrote it, and from what
# A model's folder is data: nothing is fetched for it, and no code in it is run.
AS_DATA = {"local_files_only": True, "trust_remote_code": False}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(kw_only=True)
class Backbone:
    """A checkpoint and where it comes from. Its fields are the keys of configs/backbone/<name>.yaml."""

    embedded: ClassVar[Callable[[], Path]]  # the folder of the one from the package index
    auto: ClassVar[type]  # the transformers class that loads it
    kind: ClassVar[str]  # PEFT's name for what it does
    instead: ClassVar[str]  # of a checkpoint that cannot be fetched
    name: str
    repo: str | None  # the hub's repository; None: the embedded model
    revision: str | None
    path: str | None  # a local folder, instead of the hub
    target_modules: list[str]
    dropout: float | None  # of the backbone in training; None: as the model's own config has it
    seen: list[str]  # tasks whose texts the pre-training saw: tables mark these rows

    def suit(self, num_labels: int) -> None:
        """Raises ValueError for a task, with labels or without (0), that this kind of model cannot learn."""
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
        offline = f"offline, use backbone.path=DIR with a copy of {self.repo}, or {self.instead}"
        folder, commit = hub_snapshot(self.repo, self.revision, kind="model", patterns=patterns, offline=offline)
        if patterns is FILES and not any(folder.glob("*.safetensors")):  # a pickle is neither fetched nor read
            raise ValueError(f"{self.repo} at {self.revision!r} has no *.safetensors: use backbone.path=DIR with a copy of it "
                             f"that `save_pretrained` wrote, or a backbone.revision that has them")  # fmt: skip
        return folder, commit

    def tokenizer(self, *, alone: bool = False) -> PreTrainedTokenizerBase:
        """alone: of the hub's files, fetch no weights. Raises ValueError as `folder` does."""
        folder = (self._get(FILES[:-1]) if alone else self.folder)[0]
        with self._loading(folder):
            return AutoTokenizer.from_pretrained(folder, **AS_DATA)

    def longest(self, model: nn.Module) -> int:
        """The number of tokens that the model has positions for."""
        return model.config.max_position_embeddings - self.first_position(model)

    def first_position(self, model: nn.Module) -> int:
        """The position of a row's first token: 0, in RoBERTa and its kin the number after the padding id."""
        return getattr(getattr(model.base_model, "embeddings", None), "padding_idx", -1) + 1

    def load(self, **options) -> tuple[nn.Module, set[str]]:
        """(model, names of the weights that the folder lacks). Raises ValueError for a folder that does not load."""
        folder = self.folder[0]
        weight_files(folder)
        with self._loading(folder):
            model, report = self.auto.from_pretrained(
                folder, use_safetensors=True, output_loading_info=True, **AS_DATA, **options
            )
        return model, {str(key) for key in report["missing_keys"] | report["mismatched_keys"]}

    def stock(self, num_labels: int) -> nn.Module:
        """The model as transformers alone makes it. Raises ValueError as `model` does."""
        return self.model(num_labels)

    def refuse(self, absent: set[str]) -> None:
        if absent:
            raise ValueError(
                f"backbone {self.name}: {self.folder[0]} lacks weights of this architecture, {min(absent)} first"
            )

    @contextlib.contextmanager
    def _loading(self, folder: Path):
        try:
            yield
        except Exception as error:  # transformers, safetensors and tokenizers each raise their own
            raise ValueError(f"backbone {self.name}: {folder} does not load ({str(error).splitlines()[0]})") from error

    def origin(self) -> dict:
        """What the record says of the checkpoint: the hub's commit, if it came from there, and the sha256 of its weights, its
        config and its tokenizer's files (of several files, the sha256 of their joined hashes). Raises ValueError as
        `weight_files` does, and for a config that is no JSON.

        Weights in a folder of the user's that were given no name of their own have the name of the public ones that they
        are, or else of their sha256: nothing says that they are those which configs/backbone describes.
        """
        folder, commit = self.folder
        of_files = {
            "sha256": _joined(weight_files(folder)),
            "config_sha256": config_sha256(folder),
            "tokenizer_sha256": _joined(sorted({path for pattern in TOKENIZER for path in folder.glob(pattern)})),
        }
        if not self.path:
            return {"name": self.name, "repo": self.repo, "commit": commit, **of_files}
        known = OPTION.get(of_files["sha256"], f"local-{of_files['sha256'][:10]}")
        name = known if self.name in options("backbone") else self.name
        return {"name": name, "repo": None, "commit": None, **of_files}


def _joined(paths: list[Path]) -> str:
    """The sha256 of one file, or of several files' joined hashes."""
    hashes = [sha256_once(path) for path in paths]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def config_sha256(folder: Path) -> str:
    """Of what config.json says, but for who wrote it. Raises ValueError for a file that is no JSON object."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return sha256_json({key: value for key, value in config.items() if key not in WRITER})
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{folder} holds no config.json that is a JSON object ({error})") from error


def weight_files(folder: Path) -> list[Path]:
    """The files that `load` reads weights from, and `origin` hashes: model.safetensors, or the shards that an index names.

    Raises ValueError for a folder without them, an index that names anything but files beside it, and a folder that is
    an adapter too, which transformers would load on top of the weights, or instead of them.
    """
    if (folder / "adapter_config.json").exists():
        raise ValueError(
            f"{folder} holds an adapter_config.json: name the folder of the model itself, without adapters"
        )
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise ValueError(f"{folder} holds neither {WEIGHTS} nor {INDEX}: name a transformers checkpoint folder")
    try:
        names = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        shards = sorted({str(name) for name in names})
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{folder / INDEX} is no index of weights ({type(error).__name__})") from error
    for name in shards:
        if not (shapes.name(name) and name.endswith(".safetensors")) or not (folder / name).is_file():
            raise ValueError(f"{folder / INDEX} names {name!r}, which is no .safetensors file beside it")
    if not shards:
        raise ValueError(f"{folder / INDEX} names no file of weights")
    return [folder / name for name in shards]


def check_device(precision: str) -> None:
    """Raises ValueError for a precision that this machine does not have."""
    if precision == "fp16" and not torch.cuda.is_available():
        raise ValueError("precision=fp16 needs a CUDA device, and there is none here: use precision=bf16 or no")


def check_dtype(model: nn.Module, precision: str) -> None:
    """Raises ValueError for frozen weights in half precision under none: they meet adapters in float32."""
    dtype = next(model.parameters()).dtype
    if dtype != torch.float32 and precision == "no":
        name = str(dtype).removeprefix("torch.")
        raise ValueError(f"backbone.dtype={name} needs a precision like it: precision=bf16 or fp16")


@dataclass(kw_only=True)
class Encoder(Backbone):
    """A BERT-like model under a new classifier."""

    embedded = minilm_folder
    auto = AutoModelForSequenceClassification
    kind = "SEQ_CLS"
    instead = "backbone=minilm"
    head: str | list[str]  # the module, or modules, whose linear layers are trained in full
    pooling: str | None = None  # what the head reads of a row: `streams.pool_rows`

    def suit(self, num_labels: int) -> None:
        if not num_labels:
            raise ValueError(
                f"backbone {self.name} is an encoder: task=alpaca needs a language model, as backbone=smollm2"
            )

    def model(self, num_labels: int) -> nn.Module:
        """The model with `num_labels` outputs (1: regression), whose head reads rows as `pooling` says. Raises ValueError
        for a folder without weights."""
        model = self.stock(num_labels)
        pool_rows(model, self.pooling)
        return model

    def stock(self, num_labels: int) -> nn.Module:
        rates = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
        dropout = {} if self.dropout is None else dict.fromkeys(rates, self.dropout)
        model, absent = self.load(num_labels=num_labels, dtype=torch.float32, **dropout)
        pooler = f"{model.base_model_prefix}.pooler."  # of no use where the head reads means
        heads = head_names(self.head)
        unread = (*heads, pooler) if self.pooling == "mean" else tuple(heads)
        self.refuse({key for key in absent if not key.startswith(unread)})
        for head in set(heads) - dict(model.named_modules()).keys():
            there = ", ".join(name for name, _ in model.named_children())
            raise ValueError(f"backbone.head={head!r} is no module of {self.name}: it has {there}")
        return model


@dataclass(kw_only=True)
class CausalLM(Backbone):
    """A decoder with its own output layer, which stays frozen like the rest."""

    embedded = smollm2_folder
    auto = AutoModelForCausalLM
    kind = "CAUSAL_LM"
    instead = "backbone=smollm2"
    head: str = field(default="", init=False)  # none
    dtype: str  # of the frozen weights: float32, or bfloat16 or float16 under a precision like it
    quantization: str | None  # nf4: 4-bit weights, QLoRA (Dettmers et al. 2023)
    gradient_checkpointing: bool  # compute activations again in the backward pass instead of keeping them

    def suit(self, num_labels: int) -> None:
        if num_labels:
            raise ValueError(f"backbone {self.name} is a language model without a classifier: use it with task=alpaca")

    def model(self, num_labels: int) -> nn.Module:
        """The language model, which has no labels. Raises ValueError for weights that cannot be had so."""
        if self.dtype not in DTYPES:
            raise ValueError(f"backbone.dtype={self.dtype!r} is unknown: use {', '.join(DTYPES)}")
        options = {} if self.dropout is None else {"attention_dropout": self.dropout}
        if self.quantization:
            device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
            options |= {"quantization_config": self._nf4(), "device_map": {"": device}}
        model, absent = self.load(dtype=DTYPES[self.dtype], **options)
        self.refuse(absent)
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        return model

    def _nf4(self):
        if self.quantization != "nf4":
            raise ValueError(f"backbone.quantization={self.quantization!r} is unknown: use nf4 or null")
        if not importlib.util.find_spec("bitsandbytes"):
            raise ValueError(
                "backbone.quantization=nf4 needs bitsandbytes: pip install -c requirements.lock -e '.[qlora]'"
            )
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=DTYPES[self.dtype],
        )  # fmt: skip
