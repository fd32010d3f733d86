"""From a plain model to an adapted one and back: freezing, new heads, target layers, merging, initial values."""

import copy
import math
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn

from melora_bench.methods.layers import HeadLinear, Replicated
from melora_bench.seeding import generator

ALL = "all-linear"  # as in PEFT
Model = TypeVar("Model", bound=nn.Module)


def head_names(head: str | list[str]) -> list[str]:
    """The names of the modules that are a model's new head: of one, of several, or of none ("" or []).

    >>> head_names("classifier"), head_names(["head", "classifier"]), head_names("")
    (['classifier'], ['head', 'classifier'], [])
    """
    return [name for name in ([head] if isinstance(head, str) else head) if name]


def is_below(name: str, modules: Iterable[str]) -> bool:
    """Whether a dotted name is one of `modules` or lies inside one.

    >>> is_below("classifier.dense.weight", ["classifier"]), is_below("classifiers.dense", ["classifier"])
    (True, False)
    """
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def freeze(model: nn.Module, head: str | list[str], seeds: list[int]) -> None:
    """Freeze the model, except that each linear layer of its new head becomes one trainable layer per seed."""
    model.requires_grad_(False)
    std = getattr(getattr(model, "config", None), "initializer_range", 0.02)
    for part in head_names(head):
        for name, base in _linears(model.get_submodule(part), prefix=part):
            layer = HeadLinear(base, len(seeds))
            layer.reset_parameters([generator(seed, "head", name) for seed in seeds], std)
            model.set_submodule(name, layer)


def target_linears(
    model: nn.Module, targets: list[str] | str, head: str | list[str] = ""
) -> list[tuple[str, nn.Linear]]:
    """The linear layers outside the head whose dotted name ends in one of `targets`; for "all-linear" every one but the
    output layer. Raises ValueError for a target that finds none."""
    linears = [(name, base) for name, base in _linears(model) if not is_below(name, head_names(head))]
    if targets == ALL:
        output = getattr(model, "get_output_embeddings", lambda: None)()
        return [(name, base) for name, base in linears if base is not output]
    if isinstance(targets, str):
        raise ValueError(f"method.target_modules={targets} must be a list, [{targets}], or {ALL}")
    for target in targets:
        if not any(_matches(name, target) for name, _ in linears):
            endings = sorted({name.rsplit(".", 1)[-1] for name, _ in linears})
            raise ValueError(f"target_modules: {target!r} matches no linear layer; this model has {', '.join(endings)}")
    if not targets:
        raise ValueError("target_modules is empty: name the linear layers to adapt, such as [query, value]")
    return [(name, base) for name, base in linears if any(_matches(name, target) for target in targets)]


def merge(model: Model, replica: int) -> Model:
    """A copy of the model with plain layers: one replica's updates and head written into the weights.

    Raises ValueError for a layer that no plain one can stand for.
    """
    plain = copy.deepcopy(model)
    for name, module in list(plain.named_modules()):
        if isinstance(module, Replicated):
            plain.set_submodule(name, module.merged(replica))
    return plain


def require_positive(**values: float) -> None:
    """Raises ValueError naming the first value that is not a positive number; alpha and ratios need not be whole."""
    for name, value in values.items():
        whole = not name.endswith(("alpha", "ratio"))
        if type(value) not in ((int,) if whole else (int, float)) or not 0 < value < math.inf:
            raise ValueError(f"{name}={value} must be positive{' and whole' * whole}")


def init_a(kind: str) -> Callable[[Tensor, torch.Generator], Tensor]:
    """How a factor A (..., r, fan_in) is drawn. kaiming_uniform with a = sqrt 5 is U(-1/sqrt(fan_in), 1/sqrt(fan_in)),
    what public LoRA code does; gaussian is N(0, 1/r), what the papers write. Raises ValueError for another name."""
    if kind == "kaiming_uniform":
        return lambda A, source: A.uniform_(-1 / math.sqrt(A.shape[-1]), 1 / math.sqrt(A.shape[-1]), generator=source)
    if kind == "gaussian":
        return lambda A, source: A.normal_(0.0, 1 / math.sqrt(A.shape[-2]), generator=source)
    raise ValueError(f"init_a={kind!r} is unknown: use kaiming_uniform or gaussian")


def _linears(module: nn.Module, prefix: str = "") -> list[tuple[str, nn.Linear]]:
    return [(name, layer) for name, layer in module.named_modules(prefix=prefix) if isinstance(layer, nn.Linear)]


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
