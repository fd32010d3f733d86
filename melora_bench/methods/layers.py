"""The layers that training changes: R copies side by side on one frozen backbone.

The replica axis. Every tensor of a `Replicated` layer's own has a leading axis R: R seeds are trained side by side. The
backbone sees a batch of R * B rows, replica k owns rows k * B to (k + 1) * B, and nothing mixes rows.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

Form = Literal["factors", "matrix", "function"]


class Replicated(nn.Module):
    """R trained copies of a module side by side.

    Checkpoints, adapter files, counts, merging and sharding ask whether a module is `Replicated`, and nothing else.
    """

    def own_tensors(self) -> dict[str, Tensor]:
        """The tensors that belong to the copies, by name, each (R, ...), sharing memory with the layer."""
        return self.state_dict()

    def merged(self, replica: int) -> nn.Module:
        """The plain module of one replica. Raises ValueError where no plain module computes the same."""
        raise NotImplementedError


class ReplicatedLinear(Replicated):
    """R trainable linear layers side by side: weight (R, d_out, d_in) and, where the plain layer has one, bias
    (R, d_out)."""

    def __init__(self, base: nn.Linear, replicas: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(base.weight.detach().float().repeat(replicas, 1, 1))
        self.bias = None if base.bias is None else nn.Parameter(torch.zeros(replicas, base.out_features))

    def reset_parameters(self, generators: list[torch.Generator], std: float) -> None:
        """N(0, std^2) weights and zero biases, as transformers initialises a new classifier."""
        for weight, source in zip(self.weight.data, generators, strict=True):
            weight.normal_(0.0, std, generator=source)

    def forward(self, x: Tensor) -> Tensor:
        """x (R * B, ..., d_in) -> (R * B, ..., d_out)."""
        rows = x.reshape(self.weight.shape[0], -1, x.shape[-1])
        if self.bias is None:
            return (rows @ self.weight.mT).view(*x.shape[:-1], -1)
        return torch.baddbmm(self.bias.unsqueeze(1), rows, self.weight.mT).view(*x.shape[:-1], -1)

    def merged(self, replica: int) -> nn.Linear:
        return _linear(self.weight[replica], None if self.bias is None else self.bias[replica])


class HeadLinear(ReplicatedLinear):
    """A linear layer of the model's new head: its rate, its count and its place in files are the head's."""


class AdapterLayer(Replicated):
    """One frozen linear layer `base` and R independent trainable updates to it.

    A class defines `reset_parameters` and `update`, and declares the form of its update:

    factors   a product of two factors (`FactoredLayer`): merges into the weight, is exported as PEFT LoRA
    matrix    a change of the weight (`delta_weight`): merges, but is no PEFT LoRA
    function  any function of the input: does neither, and has no singular values
    """

    form: ClassVar[Form]
    scaling: float = 1.0
    name: str = "an adapted layer"  # in its model

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

    def adapted(self, x: Tensor, out: Tensor) -> Tensor:
        """x (R, T, d_in) and the frozen layer's output (R, T, d_out) -> (R, T, d_out)."""
        return out + self.update(x).to(out.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x (R * B, ..., d_in) -> (R * B, ..., d_out). Raises ValueError for an x that is not rows of R replicas."""
        if len(x) % self.replicas:
            raise ValueError(
                f"{self.name} also reads a tensor of shape {tuple(x.shape)} that all rows share, and each of "
                f"{self.replicas} seeds side by side would make another of it: give backbone.packs=false"
            )
        out = self.base(x)
        rows = (value.reshape(self.replicas, -1, value.shape[-1]) for value in (x, out))
        return self.adapted(*rows).view(out.shape)

    def own_tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.state_dict().items() if not name.startswith("base.")}

    def frozen_weight(self) -> Tensor:
        """(d_out, d_in), float32. Raises ValueError for a weight that is packed into 4 bits."""
        weight = self.base.weight
        if weight.shape != (self.base.out_features, self.base.in_features):
            raise ValueError(
                "quantised weights cannot take a merged update: keep the adapter, or use the unquantised model"
            )
        return weight.float()

    def delta_weight(self) -> Tensor:
        """(R, d_out, d_in): the change of the frozen weight that `update` amounts to, dropout aside."""
        raise NotImplementedError

    def singular_values(self, replica: int) -> Tensor:
        """(min(d_out, d_in),): those of one replica's update."""
        values: Tensor = torch.linalg.svdvals(self.delta_weight()[replica].detach().double())
        return values

    def load_lora_factors(self, replica: int, B: Tensor, A: Tensor) -> None:
        """Start one replica at the update B A, the scale folded in;
        raises ValueError where this form cannot hold it."""
        raise ValueError(f"{type(self).__name__} cannot start from another method's factors")

    def merged(self, replica: int) -> nn.Linear:
        """The plain linear layer of one replica, its update added to the frozen weight.

        Raises ValueError where that is packed, and for an update that is no change of a weight.
        """
        if self.form == "function":
            raise ValueError(f"{type(self).__name__} is a function of its input (form: function): it cannot be merged")
        return _linear(self.frozen_weight() + self.delta_weight()[replica], self.base.bias)


class FactoredLayer(AdapterLayer):
    """An adapter layer whose update is the product of two factors; a class defines `lora_factors` too."""

    form = "factors"

    def lora_factors(self) -> tuple[Tensor, Tensor]:
        """Exact factors of the update, the scale folded in: B (R, d_out, k) and A (R, k, d_in)."""
        raise NotImplementedError

    def delta_weight(self) -> Tensor:
        B, A = self.lora_factors()
        return B @ A

    def singular_values(self, replica: int) -> Tensor:
        """(k,): those of one replica's update, from its factors alone: no (d_out, d_in) matrix is made."""
        B, A = (factor[replica].detach().double() for factor in self.lora_factors())
        values: Tensor = torch.linalg.svdvals(torch.linalg.qr(B).R @ torch.linalg.qr(A.mT).R.mT)
        return values


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device=weight.device)
    linear.weight.data.copy_(weight.detach())
    if bias is not None:
        linear.bias.data.copy_(bias.detach())
    return linear
