"""The frozen backbone cut into one part per process (FSDP); adapters, heads and what else is trained stay whole."""

import logging
import os
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedModel

from melora_bench.adapters.files import adapter_tensors
from melora_bench.methods.layers import AdapterLayer
from melora_bench.training.configs import RunConfig

log = logging.getLogger(__name__)

HOW = "accelerate launch --multi_gpu --num_processes N scripts/train.py"


def refuse_launch(config: RunConfig) -> None:
    """Raises ValueError where `accelerate launch` was told to wrap the model itself, which cuts the adapters' replica
    axis or renames tensors, and for shard and compile together."""
    launches = ("USE_FSDP", "false", "shard"), ("USE_DEEPSPEED", "false", "shard"), ("DYNAMO_BACKEND", "no", "compile")
    for name, off, ours in launches:
        if os.environ.get(f"ACCELERATE_{name}", off).lower() != off:
            value = os.environ[f"ACCELERATE_{name}"]
            raise ValueError(
                f"ACCELERATE_{name}={value} makes accelerate wrap the adapters too: launch without, and give "
                f"{ours}=true"
            )
    if config.shard and config.compile:
        raise ValueError("shard=true and compile=true do not go together: give one of them")


def shard_backbone(model: PreTrainedModel, accelerator: Accelerator) -> None:
    """Leave each process 1/N of every frozen parameter: a layer's are gathered when it runs, and let go of after it.

    Every process has loaded the whole backbone before, into its memory, not its device's. Raises ValueError where there
    is one process only, and for a backbone without named layers or with packed weights.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if accelerator.num_processes == 1:
        raise ValueError(f"shard=true cuts the backbone into one part per process, and there is one: launch with {HOW}")
    kinds = model._no_split_modules or ()
    layers = [module for module in model.modules() if type(module).__name__ in kinds]
    if not layers:
        raise ValueError(
            f"shard=true: {type(model).__name__} does not say which of its modules are layers: use shard=false"
        )
    whole = {value.data_ptr() for value in adapter_tensors(model).values()}
    kept = {value for value in model.parameters() if value.data_ptr() in whole}
    if kept.issuperset(model.parameters()):
        raise ValueError("shard=true cuts frozen weights, and this method trains them all: use shard=false")
    for name, value in model.named_parameters():
        if value not in kept and not value.is_floating_point():
            raise ValueError(f"shard=true: {name} is packed ({value.dtype}), which cannot be cut: use shard=false")
    inside = {module for layer in layers for module in layer.modules()}
    for name, module in model.named_modules():
        if isinstance(module, AdapterLayer) and module not in inside:
            raise ValueError(
                f"shard=true: {name} is adapted but lies outside the model's layers: leave it out of target_modules"
            )
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for value in kept:
        value.data = value.data.to(accelerator.device)
    for module in [*layers, model]:
        fully_shard(module, mesh=mesh, ignored_params=kept)
    parts: list[Any] = [value for value in model.parameters() if value not in kept]
    held, numbers = sum(part.to_local().numel() for part in parts), sum(part.numel() for part in parts)
    log.info(
        "shard  %s of the backbone's %s frozen numbers in each of %d processes",
        f"{held:,}",
        f"{numbers:,}",
        accelerator.num_processes,
    )
