"""Instruction tuning of a causal language model, as Alpaca (Taori et al. 2023,
https://github.com/tatsu-lab/stanford_alpaca) and alpaca-lora do it: a template around instruction and input, the loss
on the tokens that follow."""

import io
import logging
import reprlib
import string
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from melora_bench.external.reading import is_text, read_json, read_jsonl, reading, unpacked
from melora_bench.files import sha256_file
from melora_bench.tasks.base import Source
from melora_bench.tasks.splits import Split, tokenise
from melora_bench.tasks.text import halves

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class InstructTask:
    """Rows of instruction, input and output. Its fields are the keys of configs/task/<name>.yaml."""

    version: int  # raised when a code change changes numbers; part of the config hash
    name: str
    num_labels: int  # 0: the model's own output layer is kept
    repo: str  # the hub's dataset
    revision: str
    template: str  # with {instruction} and {input}
    template_without_input: str  # with {instruction}; for rows whose input is empty
    loss_on_prompt: bool  # False: the loss is that of the output alone
    validation_rows: int  # drawn from the rows by `split_seed`; of a small file, a tenth
    split_seed: int
    metric: str = field(default="loss", init=False)  # the mean over all target tokens of the validation rows
    splits: dict[str, Split] = field(default_factory=dict, init=False, repr=False)

    def load(
        self, source: Source, tokenizer, *, max_length: int, max_train_rows: int | None, max_eval_rows: int | None
    ) -> dict:
        """Read, divide and tokenise the rows; returns what the record says: {split: {rows, sha256, ...}}.

        A text is cut at `max_length` tokens; a shorter one ends in the end-of-sequence token. Raises ValueError for a
        template without its fields, for files and rows that cannot be used, and for a cut that leaves nothing to learn.
        """
        for key, value, least in (("validation_rows", self.validation_rows, 1), ("split_seed", self.split_seed, 0)):
            if type(value) is not int or value < least:
                raise ValueError(f"task.{key}={value} must be a whole number from {least} on")
        for name, keys in (("template", {"instruction", "input"}), ("template_without_input", {"instruction"})):
            if fields(getattr(self, name)) != keys:
                needed = " and ".join(f"{{{key}}}" for key in sorted(keys))
                raise ValueError(f"task.{name} must hold {needed} and no other field")
        path, origin = source.single_file(self.name, self.repo, self.revision)
        rows = read(path)
        count = min(self.validation_rows, len(rows) // 10)
        if count == 0:
            raise ValueError(f"{path} has {len(rows)} rows: at least 10 are needed to keep a tenth for validation")
        if count < self.validation_rows:
            log.warning("%s: %d of %d rows validate, not %d", self.name, count, len(rows), self.validation_rows)
        # The order of datasets.Dataset.train_test_split, so that a seed means the rows that it means there.
        order = np.random.default_rng(self.split_seed).permutation(len(rows))
        parts = {"train": order[count:][:max_train_rows], "validation": order[:count][:max_eval_rows]}
        for name, chosen in parts.items():
            split = self.splits[name] = self._tokenise(tokenizer, [rows[i] for i in chosen], max_length)
            if split.weights is None or not split.weights.any():
                raise ValueError(f"max_length={max_length} leaves no token to learn in the {name} rows: raise it")
        sha256 = [sha256_file(path)]
        return {
            name: {"rows": len(chosen), "sha256": sha256, "of": len(rows), **origin} for name, chosen in parts.items()
        }

    def sha256(self, source: Source) -> dict[str, list[str]]:
        """By split, the sha256 of the one file of rows. Raises ValueError as `load` does."""
        sha256 = [sha256_file(source.single_file(self.name, self.repo, self.revision)[0])]
        return {"train": sha256, "validation": sha256}

    @property
    def train(self) -> Split:
        return self.splits["train"]

    @property
    def evaluation(self) -> dict[str, Split]:
        return {"validation": self.splits["validation"]}

    def prompt(self, row: dict) -> str:
        """The text before the output."""
        template = self.template if row.get("input") else self.template_without_input
        return template.format(instruction=row["instruction"], input=row.get("input"))

    def loss(self, model: nn.Module, batch: dict[str, Tensor], replicas: int) -> Tensor:
        """(R,): per replica, the mean over the target tokens of its optimizer step (`weight` is a row's share of
        them)."""
        total, count = self.outputs(model, batch).unbind(1)
        return (total / count.clamp(min=1) * batch["weight"]).view(replicas, -1).sum(1)

    def outputs(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """(rows, 2): the sum of each row's token losses, and how many tokens that are. `labels` holds the position from
        which on tokens are targets; no token comes before the first, so that is none."""
        ids, mask = batch["input_ids"], batch["attention_mask"]
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        wanted = (mask[:, 1:] > 0) & (mask.cumsum(1)[:, 1:] > batch["labels"].clamp(min=1)[:, None])
        labels = ids[:, 1:].masked_fill(~wanted, -100)  # left out; to pick the others would wait for the device
        losses = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100, reduction="none")
        return torch.stack([losses.view_as(labels).sum(1), wanted.sum(1)], dim=1)

    def score(self, outputs: dict[str, np.ndarray], half: int | None = None) -> dict[str, float]:
        """{"loss": ...} of one replica from `outputs` (rows, 2), over all rows or one of two fixed halves."""
        values = outputs["validation"]
        if half is not None:
            values = values[halves(np.zeros(len(values))) == half]
        total, count = values.astype(np.float64).sum(0)
        return {"loss": round(float(total / max(count, 1)), 6)}  # a checkpoint holds no numpy numbers

    def _tokenise(self, tokenizer, rows: list[dict], max_length: int) -> Split:
        if tokenizer.eos_token_id is None:
            raise ValueError(f"the tokenizer of {tokenizer.name_or_path} has no end token to learn: give it one")
        prompts = [self.prompt(row) for row in rows]
        texts = [prompt + row["output"] for prompt, row in zip(prompts, rows, strict=True)]
        start = np.zeros(len(rows), dtype=np.int64)
        if not self.loss_on_prompt:
            start = tokenise(tokenizer, [prompts], start, max_length, continued=True).lengths
        split = tokenise(tokenizer, [texts], start, max_length, continued=True)
        ended = split.ids[split.offsets[1:] - 1] == tokenizer.eos_token_id  # by the text itself
        short = (split.lengths < max_length) & ~ended
        ids = np.insert(split.ids, split.offsets[1:][short], tokenizer.eos_token_id)
        offsets = split.offsets + np.concatenate([[0], np.cumsum(short)])
        return replace(split, ids=ids, types=None, offsets=offsets, weights=targets(np.diff(offsets), start))


def fields(template: str) -> set[str] | None:
    """The names in braces; None where a brace ends nowhere."""
    try:
        return {key for _, key, _, _ in string.Formatter().parse(template) if key is not None}
    except ValueError:
        return None


def targets(lengths: np.ndarray, start: np.ndarray) -> np.ndarray:
    """(rows,) float32: the target tokens of each row, those from position `start` on, never the first."""
    return np.maximum(lengths - np.maximum(start, 1), 0).astype(np.float32)


def read(path: Path) -> list[dict]:
    """The rows of a .json (a list), .jsonl or .parquet file, or of one of them as .gz.

    Raises ValueError, naming file and row, for what cannot be read and for a row without instruction or output.
    """
    ending = Path(path.name.removesuffix(".gz")).suffix
    rows: object
    if ending == ".parquet":
        with reading(path):
            frame = pd.read_parquet(io.BytesIO(unpacked(path))).astype(object)
            rows = frame.where(frame.notna(), None).to_dict("records")
    else:
        rows = read_jsonl(path) if ending == ".jsonl" else read_json(path)
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path} must hold a list of rows with instruction, input and output")
    for number, row in enumerate(rows):
        for key in ("instruction", "output"):
            if not isinstance(row, dict) or not is_text(row.get(key)):
                raise ValueError(
                    f"{path}: row {number} has no text under {key!r}: every row needs instruction and output"
                )
        if not is_text(row.get("input") or ""):
            raise ValueError(f"{path}: input is {reprlib.repr(row['input'])} in row {number}, not a text")
    return rows
