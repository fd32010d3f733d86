"""What is asked of a model that writes text, as transformers' causal language models have it."""

from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn


class LanguageModel(Protocol):
    """A torch module with these members."""

    config: Any
    generation_config: Any
    device: torch.device
    training: bool
    # The model without its output layer: (ids, use_cache) -> what has past_key_values.
    base_model: Callable[..., Any]
    # Token ids (rows, prompt) -> (rows, prompt and new tokens).
    generate: Callable[..., Tensor]

    def train(self, mode: bool = True) -> Any: ...


def language_model(model: nn.Module) -> LanguageModel:
    """The model, as one that writes text. Raises ValueError for one that does not."""
    if not hasattr(model, "generate"):
        raise ValueError(f"{type(model).__name__} cannot generate text: load a causal language model")
    return cast(LanguageModel, model)
