"""The training loop: R replicas on one frozen backbone, evaluated and checkpointed after every round (an epoch, mostly).

It knows no method and no task by name: a method acts through its hooks, a task through `loss`, `outputs` and `score`.
"""

import dataclasses
import logging
import time
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import get_linear_schedule_with_warmup

from melora_bench.adapters.files import adapter_tensors, head_tensors, trainable
from melora_bench.methods.base import Method
from melora_bench.seeding import derive
from melora_bench.tasks.batches import TrainBatches, evaluation_batches
from melora_bench.training.schedule import Schedule

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Trainer:
    """One packed run. `history[k]` holds replica k's evaluations; `failed[k]` the step at which its loss, or its outputs in the
    evaluation after it, were not finite."""

    accelerator: Accelerator
    model: nn.Module
    method: Method
    task: object
    batches: TrainBatches
    schedule: Schedule
    lr: float
    head_lr_scale: float
    weight_decay: float
    max_grad_norm: float
    eval_batch_size: int
    step: int = 0  # finished steps; always whole rounds
    rate: float = 0.0  # the adapters' learning rate in the last step
    history: list[list[dict]] = field(init=False)

    def __post_init__(self) -> None:
        self.seeds = self.batches.seeds
        self.replicas = len(self.seeds)
        self.history = [[] for _ in self.seeds]
        params, in_head = trainable(self.model), head_tensors(self.model)
        heads = [value for name, value in params.items() if name in in_head]
        adapters = {name: value for name, value in params.items() if name not in in_head}
        groups = [*self.method.param_groups(adapters, self.lr), {"params": heads, "lr": self.lr * self.head_lr_scale}]
        groups = [group for group in groups if group["params"]]
        # A fused optimizer hides from accelerate the steps that fp16's loss scaling skips.
        optimizer = torch.optim.AdamW(groups, weight_decay=self.weight_decay, fused=self.accelerator.scaler is None)
        self.decay = get_linear_schedule_with_warmup(optimizer, self.schedule.warmup, self.schedule.total)
        self.model = self.accelerator.prepare_model(self.model, evaluation_mode=True)  # not wrapped: the guard averages
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)
        self.guard = ReplicaGuard(list(params.values()), self.replicas, self.max_grad_norm, self.accelerator)

    def compile(self) -> bool:
        """Compile the model, and try it on a batch of each kind: where that fails it runs as it is, and a warning says why."""
        torch._dynamo.reset()  # all models share one limit of recompilations, beyond which they run as they are, silently
        self.model.train().compile(dynamic=True)
        self.method.before_forward(0)
        split = next(iter(self.task.evaluation.values()))
        try:
            self._loss(next(self.batches.epoch(0))[0]).sum().backward()
            with torch.no_grad():
                self._outputs(next(evaluation_batches(split, self.eval_batch_size, 0, 1))[1])
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # dynamo, inductor, triton and a C++ compiler raise their own
            self.model._compiled_call_impl = None
            log.warning("compile  it runs as it is: %s: %s", type(error).__name__, str(error).partition("\n")[0])
        self.optimizer.zero_grad()
        return self.model._compiled_call_impl is not None

    @property
    def finished(self) -> bool:
        return self.step == self.schedule.total

    @property
    def epoch(self) -> int | float:
        return self.schedule.epoch(self.step)

    def train_round(self, on_step=lambda step, losses: None) -> None:
        """Train to the next evaluation, evaluate, and append to `history`. `on_step(step, (R,) sums of losses)` may watch."""
        start, step, end = time.perf_counter(), self.step, min(self.step + self.schedule.round, self.schedule.total)
        if step == 0:
            self._before_training()
        # Dropout is drawn from (seeds, round, process) alone, so a resumed run draws what the unbroken one would have.
        torch.manual_seed(derive("dropout", self.seeds, step // self.schedule.round, self.accelerator.process_index))
        self.model.train()
        totals = torch.zeros(2, self.replicas, device=self.accelerator.device)
        for micro_batches in self.batches.steps(step, end):
            for batch in micro_batches:
                with self.accelerator.accumulate(self.model):
                    self.method.before_forward(step)
                    loss = self._loss(batch)
                    penalty = self.method.penalty()
                    self.accelerator.backward((loss + penalty).sum())
                    self.guard.watch(loss + penalty, step)
                    if self.accelerator.sync_gradients:
                        self.guard.clip(self.optimizer)
                    self.optimizer.step()
                    if self.accelerator.sync_gradients and not self.accelerator.optimizer_step_was_skipped:
                        self.rate = self.decay.get_last_lr()[0]
                        self.decay.step()
                        self.method.after_optimizer_step(step, self.optimizer.optimizer)
                    self.optimizer.zero_grad()
                totals += torch.stack([loss, torch.zeros_like(loss) + penalty]).detach()
            step += 1
            on_step(step, totals[0] / self.batches.accumulation)
        totals = self.accelerator.reduce(totals, "mean") / ((end - self.step) * self.batches.accumulation)
        self.step = end
        losses = totals.T.tolist()  # waits for the device: training ends here
        trained = time.perf_counter()
        scores = self.evaluate()
        times = {"train_seconds": round(trained - start, 3), "eval_seconds": round(time.perf_counter() - trained, 3)}
        if self.finished:
            self.method.after_training(self.evaluate)
        entry = {"epoch": self.epoch, "step": step, "lr": self.rate}
        if step < self.method.selectable_from and not self.finished:
            entry["selectable"] = False
        for k, (loss, penalty) in enumerate(losses):
            if scores[k] is None:
                self.guard.stop(k, step)
            if self.failed[k] is None:
                means = {"train_loss": round(loss, 6), "penalty": round(penalty, 9)}
                report = self.method.report(k)
                if self.finished and (spectrum := self.method.spectrum(k)) is not None:
                    report["singular_values_above_0.1"] = spectrum
                self.history[k].append({**entry, **means, **scores[k], **times, "report": report})

    def _before_training(self) -> None:
        """Let the method look at the first epoch's steps: one batch each, the same in every process."""
        whole = dataclasses.replace(self.batches, accumulation=1, processes=1, process=0)
        self.model.eval()
        self.method.before_training((batch for [batch] in whole.epoch(0)), self._loss)
        self.optimizer.zero_grad()

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        """(R,)"""
        batch = {name: value.to(self.accelerator.device, non_blocking=True) for name, value in batch.items()}
        return self.task.loss(self.model, batch, self.replicas)

    def _outputs(self, batch: dict[str, Tensor]) -> Tensor:
        """(R * rows, numbers per row) of one evaluation batch, which every replica gets whole."""
        batch = {key: torch.cat([value.to(self.accelerator.device)] * self.replicas) for key, value in batch.items()}
        return self.task.outputs(self.model.eval(), batch).float()

    @torch.no_grad()
    def evaluate(self) -> list[dict | None]:
        """Per replica, {"metrics": ..., "halves": [..., ...]} over the task's splits; None if an output is not finite."""
        index, count = self.accelerator.process_index, self.accelerator.num_processes
        outputs: dict[str, np.ndarray] = {}  # (R, rows, numbers per row) of each split
        for name, split in self.task.evaluation.items():
            parts = []
            for rows, batch in evaluation_batches(split, self.eval_batch_size, index, count):
                parts.append((rows, self._outputs(batch).view(self.replicas, len(rows), -1)))
            parts = [(rows, values.cpu().numpy()) for rows, values in parts]
            parts = gather_object(parts) if count > 1 else parts
            order = np.unique(np.concatenate([rows for rows, _ in parts]), return_index=True)[1]  # some come twice
            outputs[name] = np.concatenate([values for _, values in parts], axis=1)[:, order]
        return [self._score({name: values[k] for name, values in outputs.items()}) for k in range(self.replicas)]

    def _score(self, outputs: dict[str, np.ndarray]) -> dict | None:
        if not all(np.isfinite(values).all() for values in outputs.values()):
            return None
        return {"metrics": self.task.score(outputs), "halves": [self.task.score(outputs, half=half) for half in (0, 1)]}

    @property
    def failed(self) -> list[int | None]:
        return [None if step < 0 else step for step in self.guard.failed_at.tolist()]

    def state_dict(self) -> dict:
        """Everything that resuming needs and (seeds, step) do not determine."""
        scaler = self.accelerator.scaler
        return {
            "step": self.step,
            "history": self.history,
            "failed_at": self.guard.failed_at.cpu(),
            "params": {name: value.cpu() for name, value in adapter_tensors(self.model).items()},
            "optimizer": self.optimizer.state_dict(),
            "decay": self.decay.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "method": self.method.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from what `state_dict` gave. Raises ValueError for another run's: names, shapes, steps or replicas."""
        self._check_state(state)
        self.step, self.history = state["step"], state["history"]
        self.guard.failed_at.copy_(state["failed_at"])
        for name, value in adapter_tensors(self.model).items():
            value.copy_(state["params"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.decay.load_state_dict(state["decay"])
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.method.load_state_dict(state["method"])

    def _check_state(self, state: dict) -> None:
        step, total = state["step"], self.schedule.total
        if type(step) is not int or not 0 < step <= total or (step % self.schedule.round and step != total):
            raise ValueError(f"step {step} is not the end of a round of this run of {total} steps")
        if len(state["history"]) != self.replicas or state["failed_at"].shape != self.guard.failed_at.shape:
            raise ValueError(f"it holds {len(state['history'])} replicas, this run has {self.replicas}")
        here = adapter_tensors(self.model)
        if state["params"].keys() != here.keys():
            raise ValueError(f"{min(state['params'].keys() ^ here.keys())} is a tensor of one side alone")
        params = [param for group in self.optimizer.param_groups for param in group["params"]]
        moments = [(f"the optimizer's {key} of tensor {number}", value, params[number])
                   for number, values in state["optimizer"]["state"].items()
                   for key, value in values.items() if value.dim()]  # fmt: skip
        for name, value, own in [*((name, state["params"][name], here[name]) for name in here), *moments]:
            if value.shape != own.shape:
                raise ValueError(f"{name} is {tuple(value.shape)}, here {tuple(own.shape)}")


class ReplicaGuard:
    """Averages gradients over processes, clips each replica's by its own norm, and stops a replica whose loss is no longer
    finite.

    A stopped replica's gradients are 0 from then on; the others never notice. In fp16 one thing is shared, the loss scale:
    a replica whose gradients overflow makes all skip that step. `watch` and `clip` do not wait for the device.
    """

    def __init__(self, params: list[nn.Parameter], replicas: int, max_norm: float, accelerator: Accelerator) -> None:
        self.params, self.max_norm, self.accelerator = params, max_norm, accelerator
        self.failed_at = torch.full((replicas,), -1, device=accelerator.device)

    def watch(self, loss: Tensor, step: int) -> None:
        """Note the replicas whose loss (R,) is not finite, in any process."""
        bad = (~torch.isfinite(loss.detach())).int()
        if self.accelerator.num_processes > 1:
            bad = self.accelerator.reduce(bad, "sum")
        self.failed_at = torch.where((self.failed_at < 0) & (bad > 0), step, self.failed_at)

    def stop(self, replica: int, step: int) -> None:
        if self.failed_at[replica] < 0:
            self.failed_at[replica] = step

    def clip(self, optimizer) -> None:
        """Scale each replica's gradient to at most `max_norm`; a stopped replica's to 0 before fp16's overflow check."""
        dead = self.failed_at >= 0
        grads = [param.grad.view(len(dead), -1) for param in self.params]
        if self.accelerator.num_processes > 1:
            means = self.accelerator.reduce(torch.cat(grads, dim=1), "mean")  # one message: adapters are small
            for grad, mean in zip(grads, means.split([grad.shape[1] for grad in grads], dim=1), strict=True):
                grad.copy_(mean)
        for grad in grads:
            grad.masked_fill_(dead[:, None], 0.0)
        self.accelerator.unscale_gradients(optimizer)
        norm = torch.stack([grad.square().sum(1) for grad in grads]).sum(0).sqrt()
        scale = (self.max_norm / (norm + 1e-6)).clamp(max=1.0)
        for grad in grads:
            grad.mul_(scale[:, None])
