"""Full fine-tuning: the backbone itself is trained, whole or in parts. The FT row of the papers' tables."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from melora_bench.methods.attach import freeze, head_names, is_below
from melora_bench.methods.base import Method


@dataclass(kw_only=True)
class FullFineTuning(Method):
    """h = W x with W trained. target_modules null: every parameter; else those below modules of these names
    ([layer.10, layer.11]: the two upper layers of a 12-layer encoder).

    Backbone tensors have no replica axis, so a run trains one seed; several seeds are trained one after another.

    Departures: none; a baseline.
    Tested against: a plain transformers model under AdamW.
    """

    packs: ClassVar[bool] = False
    # null is for this method alone, whose `attach` reads it; others refuse it by the type of their field.
    target_modules: list[str] | None  # type: ignore[assignment]

    def attach(self, model: nn.Module, head: str | list[str], seeds: list[int], total_steps: int) -> None:
        if len(seeds) > 1:
            raise ValueError(f"full fine-tuning cannot train seeds={seeds} side by side: give one seed at a time")
        freeze(model, head, seeds)
        matches = set()
        for name, value in model.named_parameters():
            below = [part for part in self.target_modules or [""] if not part or f".{part}." in f".{name}"]
            if below and not is_below(name, head_names(head)):
                if value.dtype != torch.float32:
                    raise ValueError(
                        "full fine-tuning trains the weights themselves, which needs backbone.dtype=float32 "
                        f"and no quantization: {name} is {value.dtype}"
                    )
                value.requires_grad_(True)
            matches.update(below)
        missing = [part for part in self.target_modules or [] if part not in matches]
        if missing or self.target_modules == []:
            raise ValueError(
                f"method.target_modules={self.target_modules} names no module of this model with parameters: "
                "name some, such as [layer.11], or null for all"
            )
