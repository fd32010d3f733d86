"""What every method shares: the adapted linear layer, the trainable head, and the hooks that the training loop calls.

The replica axis. Every trainable tensor has a leading axis R: R seeds are trained side by side on one frozen backbone.
The backbone sees a batch of R * B rows, replica k owns rows k * B to (k + 1) * B, and nothing mixes rows.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from melora_bench.seeding import generator


class ReplicatedLinear(nn.Module):
    """R trainable linear layers side by side: weight (R, d_out, d_in), bias (R, d_out). The form of every head layer."""

    def __init__(self, base: nn.Linear, replicas: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(base.weight.detach().float().repeat(replicas, 1, 1))
        self.bias = nn.Parameter(torch.zeros(replicas, base.out_features))

    def reset_parameters(self, generators: list[torch.Generator], std: float) -> None:
        """N(0, std^2) weights and zero biases, as transformers initialises a new classifier."""
        for weight, source in zip(self.weight.data, generators, strict=True):
            weight.normal_(0.0, std, generator=source)

    def forward(self, x: Tensor) -> Tensor:
        """x (R * B, ..., d_in) -> (R * B, ..., d_out)."""
        rows = x.reshape(self.weight.shape[0], -1, x.shape[-1])
        return torch.baddbmm(self.bias.unsqueeze(1), rows, self.weight.mT).view(*x.shape[:-1], -1)

    def merged(self, replica: int) -> nn.Linear:
        """The plain linear layer of one replica."""
        return _linear(self.weight[replica], self.bias[replica])


class AdapterLayer(nn.Module):
    """One frozen linear layer and R independent trainable updates to it.

    A method defines `update` and `reset_parameters`, and `lora_factors` if its update is not that of `A` and `B`.
    """

    scaling = 1.0

    def __init__(self, base: nn.Linear, replicas: int) -> None:
        super().__init__()
        self.base = base
        self.replicas = replicas

    def reset_parameters(self, generators: list[torch.Generator]) -> None:
        """Draw the initial values; generators[k] serves replica k alone."""
        raise NotImplementedError

    def update(self, x: Tensor) -> Tensor:
        """x (R, T, d_in) -> (R, T, d_out): what the adapters add to the frozen layer's output."""
        raise NotImplementedError

    def lora_factors(self) -> tuple[Tensor, Tensor]:
        """Exact factors of the update, the scale folded in: B (R, d_out, k) and A (R, k, d_in)."""
        return self.B * self.scaling, self.A

    def singular_values(self, replica: int) -> Tensor:
        """(k,): those of one replica's update, from its factors alone: no (d_out, d_in) matrix is made."""
        B, A = (factor[replica].detach().double() for factor in self.lora_factors())
        return torch.linalg.svdvals(torch.linalg.qr(B).R @ torch.linalg.qr(A.mT).R.mT)

    def load_lora_factors(self, replica: int, B: Tensor, A: Tensor) -> None:
        """Start one replica at the update B A, the scale folded in; raises ValueError where this form cannot hold it."""
        raise ValueError(f"{type(self).__name__} cannot start from another method's factors")

    def delta_weight(self) -> Tensor:
        """(R, d_out, d_in): the change of the frozen weight that `update` amounts to, dropout aside."""
        B, A = self.lora_factors()
        return B @ A

    def forward(self, x: Tensor) -> Tensor:
        """x (R * B, ..., d_in) -> (R * B, ..., d_out)."""
        out = self.base(x)
        return out + self.update(x.reshape(self.replicas, -1, x.shape[-1])).view(out.shape).to(out.dtype)

    def merged(self, replica: int) -> nn.Linear:
        """The plain linear layer of one replica, its update added to the frozen weight. Raises ValueError if that is packed."""
        delta = self.delta_weight()[replica]
        if self.base.weight.shape != delta.shape:
            raise ValueError(
                "quantised weights cannot take a merged update: keep the adapter, or use the unquantised model"
            )
        return _linear(self.base.weight.float() + delta, self.base.bias)


@dataclass(kw_only=True)
class Method:
    """A way to adapt a frozen backbone. Its fields are the keys of configs/method/<name>.yaml.

    The training loop calls the hooks in the order in which they stand here, and knows nothing else of a method.
    """

    packs: ClassVar[bool] = True  # False: one seed at a time, as its trained tensors have no replica axis
    version: (
        int  # raised when a code change changes results beyond rounding and the draws of one law; in the config hash
    )
    target_modules: list[str]  # name endings of the linear layers to adapt, as in PEFT
    layers: dict[str, AdapterLayer] = field(default_factory=dict, init=False, repr=False)

    def make_layer(self, base: nn.Linear, replicas: int) -> AdapterLayer:
        """The adapted form of one linear layer."""
        raise NotImplementedError

    def attach(self, model: nn.Module, head: str, seeds: list[int], total_steps: int) -> None:
        """Freeze the model, adapt the target layers, make the linear layers under module `head` trainable.

        Raises ValueError when a target matches no linear layer or the method does not fit a layer's shape.
        """
        freeze(model, head, seeds)
        for name, base in target_linears(model, self.target_modules):
            self.layers[name] = self.make_layer(base, len(seeds))
            self.layers[name].reset_parameters([generator(seed, "adapter", name) for seed in seeds])
            model.set_submodule(name, self.layers[name])

    def before_forward(self, step: int) -> None:
        """Before each forward pass of optimizer step `step` (DyLoRA draws its rank)."""

    def penalty(self) -> Tensor | float:
        """(R,): what is added to each replica's loss (AdaLoRA and MPLoRA regularise)."""
        return 0.0

    def after_optimizer_step(self, step: int) -> None:
        """After the step, while the gradients are still there (AdaLoRA prunes)."""

    def after_training(self, evaluate: Callable[[], list[dict | None]]) -> None:
        """Once, after the last step; `evaluate()` scores each replica as the layers stand (DyLoRA scores every rank)."""

    def report(self, replica: int) -> dict:
        """What to store in a replica's record after each epoch (the ranks in use, say)."""
        return {}

    def spectrum(self, replica: int) -> dict[str, int]:
        """By layer, how many singular values of a replica's update are above 0.1 (MELoRA paper, figure 3)."""
        return {name: int((layer.singular_values(replica) > 0.1).sum()) for name, layer in self.layers.items()}

    def state_dict(self) -> dict:
        """What neither the model nor the optimizer holds, for the checkpoint."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Take back what `state_dict` gave."""


def freeze(model: nn.Module, head: str, seeds: list[int]) -> None:
    """Freeze the model, except that each linear layer under module `head` becomes one trainable layer per seed; a model
    without a new head has `head` empty."""
    model.requires_grad_(False)
    if not head:
        return
    for name, base in _linears(model.get_submodule(head), prefix=head):
        layer = ReplicatedLinear(base, len(seeds))
        layer.reset_parameters([generator(seed, "head", name) for seed in seeds], model.config.initializer_range)
        model.set_submodule(name, layer)


def target_linears(model: nn.Module, targets: list[str]) -> list[tuple[str, nn.Linear]]:
    """The linear layers whose dotted name ends in one of `targets`. Raises ValueError for a target that finds none."""
    if isinstance(targets, str):
        raise ValueError(f"method.target_modules={targets} must be a list: [{targets}]")
    linears = _linears(model)
    for target in targets:
        if not any(_matches(name, target) for name, _ in linears):
            endings = sorted({name.rsplit(".", 1)[-1] for name, _ in linears})
            raise ValueError(f"target_modules: {target!r} matches no linear layer; this model has {', '.join(endings)}")
    if not targets:
        raise ValueError("target_modules is empty: name the linear layers to adapt, such as [query, value]")
    return [(name, base) for name, base in linears if any(_matches(name, target) for target in targets)]


def merge(model: nn.Module, replica: int) -> nn.Module:
    """A copy of the model with plain linear layers: one replica's updates and head written into the weights."""
    plain = copy.deepcopy(model)
    for name, module in list(plain.named_modules()):
        if isinstance(module, AdapterLayer | ReplicatedLinear):
            plain.set_submodule(name, module.merged(replica))
    return plain


def require_positive(**values: float) -> None:
    """Raises ValueError naming the first value that is not a positive number; all but alpha must be whole."""
    for name, value in values.items():
        whole = not name.endswith("alpha")
        if type(value) not in ((int,) if whole else (int, float)) or not 0 < value < math.inf:
            raise ValueError(f"{name}={value} must be positive{' and whole' * whole}")


def init_a(kind: str) -> Callable[[Tensor, torch.Generator], None]:
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


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device=weight.device)
    linear.weight.data.copy_(weight.detach())
    if bias is not None:
        linear.bias.data.copy_(bias.detach())
    return linear
