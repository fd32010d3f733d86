"""What a checkpoint holds of a trainer, and a trainer that goes on from it."""

from typing import Any

from melora_bench.adapters.files import adapter_tensors
from melora_bench.training.trainer import Trainer


def state_of(trainer: Trainer) -> dict[str, Any]:
    """Everything that resuming needs and (seeds, step) do not determine."""
    scaler = trainer.accelerator.scaler
    return {
        "step": trainer.step,
        "history": trainer.history,
        "failed_at": trainer.guard.failed_at.cpu(),
        "params": {name: value.cpu() for name, value in adapter_tensors(trainer.model).items()},
        "optimizer": trainer.optimizer.state_dict(),
        "decay": trainer.decay.state_dict(),
        "scaler": scaler.state_dict() if scaler else None,
        "method": trainer.method.state_dict(),
    }


def restore(trainer: Trainer, state: dict[str, Any]) -> None:
    """Go on from what `state_of` gave.

    Raises ValueError for the state of another run, whose names, shapes, steps or replicas differ.
    """
    _check(trainer, state)
    trainer.step, trainer.history = state["step"], state["history"]
    trainer.guard.failed_at.copy_(state["failed_at"])
    for name, value in adapter_tensors(trainer.model).items():
        value.copy_(state["params"][name])
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.decay.load_state_dict(state["decay"])
    if trainer.accelerator.scaler:
        trainer.accelerator.scaler.load_state_dict(state["scaler"])
    trainer.method.load_state_dict(state["method"])


def _check(trainer: Trainer, state: dict[str, Any]) -> None:
    step, total = state["step"], trainer.schedule.total
    if type(step) is not int or not 0 < step <= total or (step % trainer.schedule.round and step != total):
        raise ValueError(f"step {step} is not the end of a round of this run of {total} steps")
    if len(state["history"]) != trainer.replicas or state["failed_at"].shape != trainer.guard.failed_at.shape:
        raise ValueError(f"it holds {len(state['history'])} replicas, this run has {trainer.replicas}")
    here = adapter_tensors(trainer.model)
    if state["params"].keys() != here.keys():
        raise ValueError(f"{min(state['params'].keys() ^ here.keys())} is a tensor of one side alone")
    tensors = [(name, state["params"][name], here[name]) for name in here]
    params = [param for group in trainer.optimizer.param_groups for param in group["params"]]
    for number, values in state["optimizer"]["state"].items():
        for key, value in values.items():
            if value.dim():
                tensors.append((f"the optimizer's {key} of tensor {number}", value, params[number]))
    for name, value, expected in tensors:
        if value.shape != expected.shape:
            raise ValueError(f"{name} is {tuple(value.shape)}, here {tuple(expected.shape)}")
