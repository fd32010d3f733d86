"""Any torch model with linear layers under a method, in a training loop of your own:
without Hydra, records or our trainer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from hydra.utils import get_class
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.optim import Optimizer

from melora_bench.adapters import optimizer, peft_format
from melora_bench.adapters.files import backbone_tensors, load_tensors, save_adapter, stored_account, trainable
from melora_bench.external.fields import check_fields
from melora_bench.external.nearest import nearest_name
from melora_bench.files import CONFIGS, options
from melora_bench.methods import attach
from melora_bench.methods.base import Method
from melora_bench.methods.layers import AdapterLayer, FactoredLayer, Replicated

OWN_FILE = "melora_bench.safetensors"


def adapt(
    model: nn.Module,
    method: str,
    *,
    target_modules: list[str] | str | None = None,
    head: str | list[str] = "",
    seed: int = 0,
    total_steps: int = 0,
    **values: object,
) -> "AdapterHandle":
    """Adapt `model` in place: freeze it and put the method's trainable layers around its linear layers.

    method: a name of configs/method/; values: keys of its YAML, from which all others are taken.
    target_modules: name endings of the linear layers to adapt, as in PEFT, or "all-linear".
    head: the module, or modules, whose linear layers are drawn anew and trained in full; "": none.
    seed: of the initial values, which are those of a run with this seed.
    total_steps: the length of the training in optimizer steps, for methods with a schedule (AdaLoRA, Delta-LoRA).

    New tensors lie on their layer's device, in float64 where the model is, else in float32: train a model in half
    precision under torch.autocast. Raises ValueError for an unknown method or key, a value that cannot be, and a target
    that matches no linear layer; the model is then as it was.

    >>> model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
    >>> adapter = adapt(model, "melora", r=1, n=2, target_modules=["0"])
    >>> sum(value.numel() for value in adapter.parameters())
    16
    >>> adapt(model, "meloras", target_modules=["0"])
    Traceback (most recent call last):
    ValueError: method 'meloras' is unknown: did you mean 'melora'?
    """
    given = values if target_modules is None else {**values, "target_modules": target_modules}
    cls, settings = _settings(model, method, given)
    made = cls(**settings)
    dtype = torch.float64 if next(model.parameters()).dtype == torch.float64 else torch.float32
    made.attach(model, head, [seed], total_steps)
    for module in model.modules():
        if isinstance(module, Replicated):
            _place(module, dtype)
    return AdapterHandle(model=model, method=made, name=method, settings=settings, head=attach.head_names(head))


@dataclass(kw_only=True)
class AdapterHandle:
    """A model that `adapt` adapted, and what a training loop needs of its method:

        for step, batch in enumerate(batches):
            adapter.before_step(step)
            (model(**batch).loss + adapter.penalty()).backward()
            optimizer.step()
            adapter.after_step(optimizer)
            optimizer.zero_grad()

    With accumulated gradients `before_step` stands before each forward pass, `after_step` after the optimizer's step.
    """

    model: nn.Module
    method: Method
    name: str
    settings: dict
    head: list[str]
    step: int | None = None

    def parameters(self) -> list[nn.Parameter]:
        """The trained tensors, each with a leading axis of length 1."""
        return list(trainable(self.model).values())

    def param_groups(self, lr: float, head_lr: float | None = None) -> list[dict]:
        """Groups for a torch optimizer: the adapters as the method wants them (LoRA+ has two rates), then the head."""
        return optimizer.param_groups(self.model, self.method, lr, lr if head_lr is None else head_lr)

    def penalty(self) -> Tensor:
        """(): what the method adds to the loss; 0 for most."""
        return torch.as_tensor(self.method.penalty()).sum()

    def before_step(self, step: int) -> None:
        """Before the forward pass of optimizer step `step`, counted from 0 (DyLoRA draws its rank)."""
        self.step = step
        self.method.before_forward(step)

    def after_step(self, optimizer: Optimizer) -> None:
        """After the optimizer's step, while the gradients are still there (AdaLoRA prunes).

        Raises ValueError if `before_step` was never called.
        """
        if self.step is None:
            raise ValueError("after_step() needs to know the step: call before_step(step) before each forward pass")
        self.method.after_optimizer_step(self.step, optimizer)

    def merge(self) -> nn.Module:
        """A copy of the model with plain layers only, the updates written into the weights, in the model's own dtype.

        Raises ValueError for a method whose updates are no change of a weight, and for weights packed into 4 bits.
        """
        self.method.require_form("factors", "matrix")
        return attach.merge(self.model, 0).to(next(self.model.parameters()).dtype)

    def save(self, folder: str | Path, base: str | None = None) -> None:
        """Write the adapters and the head to a folder that `load` reads and, where every update is a product of two
        factors, peft.PeftModel too. `base` is the public name of the backbone, for adapter_config.json."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_adapter(folder / OWN_FILE, self.model, 0, self._account)
        layers = self.method.layers
        factored = all(layer.form == "factors" for layer in layers.values())
        if factored and not backbone_tensors(self.model, layers):
            factors = self.method.layers_of(FactoredLayer)
            peft_format.write(folder, self.model, factors, 0, modules_to_save=self.head, task_type=None, base=base)

    def load(self, folder: str | Path) -> None:
        """Take the adapters and the head of a folder that `save` wrote, or the update of a PEFT LoRA adapter, without
        its head. Raises ValueError for a folder of another method or other settings, and for what cannot be read."""
        path = Path(folder) / OWN_FILE
        if path.is_file():
            if (saved := stored_account(path)) != self._account:
                raise ValueError(f"{path} was saved by adapt() with {saved}, this model has {self._account}")
            load_tensors(self.model, 0, path)
        else:
            peft_format.load_peft(self.method.layers, self.head, 0, Path(folder))

    @property
    def _account(self) -> dict:
        return {"method": self.name, "settings": self.settings}


def _settings(model: nn.Module, name: str, given: dict) -> tuple[type[Method], dict]:
    """The method's class, and its fields' values: those given, else its YAML's. Raises ValueError as `adapt` does."""
    if name not in options("method"):
        near = nearest_name(name, options("method"))
        hint = f"did you mean {near!r}?" if near else f"there are {', '.join(sorted(options('method')))}"
        raise ValueError(f"method {name!r} is unknown: {hint}")
    defaults = OmegaConf.load(CONFIGS / "method" / f"{name}.yaml")
    if "target_modules" not in given and OmegaConf.is_interpolation(defaults, "target_modules"):
        endings = sorted({name.rsplit(".", 1)[-1] for name, one in model.named_modules() if isinstance(one, nn.Linear)})
        raise ValueError(f"target_modules is missing: name some of this model's linear layers, {', '.join(endings)}")
    # The YAML takes up values of a whole config: the backbone's targets, and what recipes set.
    whole = OmegaConf.create(
        {key: value for key, value in OmegaConf.load(CONFIGS / "train.yaml").items() if key != "hydra"}
    )
    whole.update({"method": defaults, "backbone": {"target_modules": []}})
    settings = {**cast(dict[str, Any], OmegaConf.to_container(whole.method, resolve=True)), **given}
    cls = get_class(settings.pop("_target_"))
    check_fields(cls, settings, "")
    return cls, settings


def _place(module: Replicated, dtype: torch.dtype) -> None:
    """Bring the tensors of a layer's own to the device of its frozen layer, or of its weight."""
    device = (module.base.weight if isinstance(module, AdapterLayer) else next(module.parameters())).device
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if not name.startswith("base."):
            value.data = value.data.to(device, dtype)
