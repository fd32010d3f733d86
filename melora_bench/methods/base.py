"""What every method has: the hooks that the training loop calls."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from melora_bench.methods.attach import freeze, target_linears
from melora_bench.methods.layers import AdapterLayer, Form
from melora_bench.seeding import generator

Layer = TypeVar("Layer", bound=AdapterLayer)
THRESHOLD = 0.1  # what `spectrum` counts above: MELoRA paper, figure 3


@dataclass(kw_only=True)
class Method:
    """A way to adapt a frozen backbone. Its fields are the keys of configs/method/<name>.yaml.

    The training loop calls the hooks in the order in which they stand here, and knows nothing else of a method.
    """

    packs: ClassVar[bool] = True  # False: one seed at a time, as its trained tensors have no replica axis
    # Raised when a code change changes results beyond rounding and the draws of one law; in the config hash.
    version: int
    target_modules: list[str] | str  # name endings of the linear layers to adapt, as in PEFT, or all-linear
    layers: dict[str, AdapterLayer] = field(default_factory=dict, init=False, repr=False)

    def make_layer(self, base: nn.Linear, replicas: int) -> AdapterLayer:
        """The adapted form of one linear layer."""
        raise NotImplementedError

    def attach(self, model: nn.Module, head: str | list[str], seeds: list[int], total_steps: int) -> None:
        """Freeze the model, adapt the target layers, make the linear layers of its new head trainable.

        head: the name of the head's module, or names; empty: a model without a new head.
        Raises ValueError when a target matches no linear layer or the method does not fit a layer's shape; the model is
        then as it was.
        """
        targets = target_linears(model, self.target_modules, head)
        layers = {name: self.make_layer(base, len(seeds)) for name, base in targets}
        freeze(model, head, seeds)
        for name, layer in layers.items():
            layer.name = name
            layer.reset_parameters([generator(seed, "adapter", name) for seed in seeds])
            model.set_submodule(name, layer)
        self.layers = layers

    def param_groups(self, adapters: dict[str, nn.Parameter], lr: float) -> list[dict[str, Any]]:
        """The optimizer's groups of the trained tensors outside the head, given by name (LoRA+ has two rates). The
        first group's rate is the one that records show."""
        return [{"params": list(adapters.values()), "lr": lr}]

    def before_training(self, steps: Iterator[dict[str, Tensor]], loss: Callable[[dict[str, Tensor]], Tensor]) -> None:
        """Once, before the first step of a run that was not resumed, in evaluation mode (for initial values from data).

        steps: the batches of the first epoch's optimizer steps, each whole, whatever accumulation and processes are.
        loss: batch -> (R,), the loss of each replica; the gradients that its backward pass leaves are cleared.
        """

    def before_forward(self, step: int) -> None:
        """Before each forward pass of optimizer step `step` (DyLoRA draws its rank)."""

    def penalty(self) -> Tensor | float:
        """(R,): what is added to each replica's loss (AdaLoRA and MPLoRA regularise)."""
        return 0.0

    def after_optimizer_step(self, step: int, optimizer: Optimizer) -> None:
        """After the step, while the gradients are still there (AdaLoRA prunes). A method that resets tensors resets
        what `optimizer.state` holds of them too."""

    @property
    def selectable_from(self) -> int:
        """The number of finished steps from which on an evaluation may be chosen as the best.
        The last one always may."""
        return 0

    def after_training(self, evaluate: Callable[[], list[dict[str, Any] | None]]) -> None:
        """Once, after the last step; `evaluate()` scores each replica as the layers stand (DyLoRA scores every
        rank)."""

    def report(self, replica: int) -> dict[str, Any]:
        """What to store in a replica's record after each epoch (the ranks in use, say)."""
        return {}

    def spectrum(self, replica: int) -> dict[str, int] | None:
        """By layer, how many singular values of a replica's update are above 0.1 (MELoRA paper, figure 3); None for
        updates that are no change of a weight."""
        if any(layer.form == "function" for layer in self.layers.values()):
            return None
        return {name: int((layer.singular_values(replica) > THRESHOLD).sum()) for name, layer in self.layers.items()}

    def layers_of(self, kind: type[Layer]) -> dict[str, Layer]:
        """The layers by name, all of the class `kind`. Raises TypeError for a layer of another class."""
        layers = {name: layer for name, layer in self.layers.items() if isinstance(layer, kind)}
        for name in self.layers.keys() - layers.keys():
            raise TypeError(f"{name} is a {type(self.layers[name]).__name__}, not a {kind.__name__}")
        return layers

    def state_dict(self) -> dict[str, Any]:
        """What neither the model nor the optimizer holds, for the checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""

    def require_form(self, *forms: Form) -> None:
        """Raises ValueError, naming the method and the form, where an update is not of one of `forms`."""
        for layer in self.layers.values():
            if layer.form not in forms:
                instead = "keep the adapter file" if layer.form == "function" else "export it with merged=true"
                allowed = " or ".join(map(repr, forms))
                raise ValueError(
                    f"{type(self).__name__} makes updates of the form {layer.form!r}, and this takes {allowed} only: "
                    f"{instead}"
                )
