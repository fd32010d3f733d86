"""The frozen models that are adapted: from a hub, from a local folder, or from the package index."""

import importlib.util
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from melora_bench.external.embedded import minilm_folder, smollm2_folder
from melora_bench.methods.attach import head_names, is_below
from melora_bench.models.base import Backbone
from melora_bench.models.fused import separate
from melora_bench.models.pooling import classify_rows, pool_rows

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(kw_only=True)
class Encoder(Backbone):
    """A BERT-like model under a new classifier."""

    embedded = minilm_folder
    auto = AutoModelForSequenceClassification
    kind = "SEQ_CLS"
    alternative = "backbone=minilm"

    def for_task(self, num_labels: int) -> "Encoder":
        if not num_labels:
            raise ValueError(
                f"backbone {self.name} is an encoder: task=alpaca needs a language model, as backbone=smollm2"
            )
        return self

    def model(self, num_labels: int) -> PreTrainedModel:
        """The model with `num_labels` outputs (1: regression), whose head reads rows as `pooling` says. Raises
        ValueError for a folder without weights."""
        model = self.stock(num_labels)
        separate(model)
        pool_rows(model, self.pooling)
        return model

    def stock(self, num_labels: int) -> PreTrainedModel:
        model, absent = self.load(num_labels=num_labels, dtype=torch.float32)
        pooler = f"{model.base_model_prefix}.pooler."  # of no use where the head reads tokens
        heads = head_names(self.head)
        unread = (*heads, pooler) if self.pooling else tuple(heads)
        absent = {key for key in absent if not key.startswith(unread)}
        if absent and all(key.startswith(pooler) for key in absent):
            names = ",".join([pooler.removesuffix("."), *heads])
            raise ValueError(
                f"backbone {self.name}: {self.folder[0]} holds no pooling layer: give backbone.head=[{names}] to train "
                "one, or backbone.pooling=mean"
            )
        self.refuse_absent(absent)
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
    alternative = "backbone=smollm2"
    head: str = field(default="", init=False)  # none
    dtype: str  # of the frozen weights: float32, or bfloat16 or float16 under a precision like it
    quantization: str | None  # nf4: 4-bit weights, QLoRA (Dettmers et al. 2023)
    gradient_checkpointing: bool  # compute activations again in the backward pass instead of keeping them

    def for_task(self, num_labels: int) -> "CausalLM":
        if num_labels:
            given = {one.name: getattr(self, one.name) for one in fields(self) if one.init}
            return DecoderClassifier(**given | {"pooling": self.pooling or "last"})
        if self.pooling:
            raise ValueError(
                f"backbone.pooling={self.pooling} is what a classifier reads of a row, and task=alpaca has none: "
                "leave it out"
            )
        return self

    def model(self, num_labels: int) -> PreTrainedModel:
        """The language model, which has no labels. Raises ValueError for weights that cannot be had in this form."""
        model = self.stock(num_labels)
        separate(model)
        return model

    def stock(self, num_labels: int) -> PreTrainedModel:
        return self._loaded()

    def _loaded(self, **options: Any) -> PreTrainedModel:
        if self.dtype not in DTYPES:
            raise ValueError(f"backbone.dtype={self.dtype!r} is unknown: use {', '.join(DTYPES)}")
        if self.quantization:
            device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
            options |= {"quantization_config": self._nf4(), "device_map": {"": device}}
        model, absent = self.load(dtype=DTYPES[self.dtype], **options)
        self.refuse_absent({key for key in absent if not is_below(key, head_names(self.head))})
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
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=DTYPES[self.dtype],
        )


@dataclass(kw_only=True)
class DecoderClassifier(CausalLM):
    """A decoder under a new classifier, in the place of its output layer: what `CausalLM.for_task` makes of it."""

    auto = AutoModelForSequenceClassification
    kind = "SEQ_CLS"
    head: str = field(default="score", init=False)  # transformers' name of it, whatever the kind of decoder
    pooling: str

    def model(self, num_labels: int) -> PreTrainedModel:
        """The model with `num_labels` outputs (1: regression), whose classifier reads rows as `pooling` says. Raises
        ValueError as `CausalLM.model` does, and for a pooling that there is not."""
        model = super().model(num_labels)
        classify_rows(model, self.pooling, self.head)
        return model

    def stock(self, num_labels: int) -> PreTrainedModel:
        return self._loaded(num_labels=num_labels)
