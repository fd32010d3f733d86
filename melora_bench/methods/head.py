"""Head only: the frozen backbone's features under a trained classifier, the floor that any adapter must beat."""

from dataclasses import dataclass

from torch import nn

from melora_bench.methods.attach import freeze, head_names
from melora_bench.methods.base import Method


@dataclass(kw_only=True)
class HeadOnly(Method):
    """h = W x in every layer of the backbone: nothing is adapted.

    Departures: none; a baseline.
    Tested against: the frozen backbone.
    """

    def attach(self, model: nn.Module, head: str | list[str], seeds: list[int], total_steps: int) -> None:
        if not head_names(head):
            raise ValueError("method=head has nothing to train on a language model, which has no new head")
        freeze(model, head, seeds)
