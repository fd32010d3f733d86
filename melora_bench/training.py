"""The training loop: R replicas on one frozen backbone, evaluated and checkpointed after every epoch.

It knows no method and no task by name: a method acts through its hooks, a task through `loss` and `score`.
"""

import time
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import get_linear_schedule_with_warmup

from melora_bench.batches import TrainBatches, evaluation_batches
from melora_bench.checkpoints import adapter_tensors, trainable
from melora_bench.methods.base import Method
from melora_bench.seeding import derive


@dataclass(kw_only=True)
class Trainer:
    """One packed run. `history[k]` holds replica k's epochs; `failed[k]` the step at which its loss, or its outputs in the
    evaluation after it, were not finite."""

    accelerator: Accelerator
    model: nn.Module
    method: Method
    task: object
    batches: TrainBatches
    head: str
    epochs: int
    lr: float
    head_lr_scale: float
    weight_decay: float
    warmup_ratio: float
    max_grad_norm: float
    eval_batch_size: int
    epoch: int = 0  # finished epochs
    rate: float = 0.0  # the adapters' learning rate in the last step
    history: list[list[dict]] = field(init=False)

    def __post_init__(self) -> None:
        self.seeds = self.batches.seeds
        self.replicas = len(self.seeds)
        self.history = [[] for _ in self.seeds]
        self.total_steps = self.epochs * self.batches.steps_per_epoch
        params = trainable(self.model)
        heads = [value for name, value in params.items() if name.startswith(f"{self.head}.")]
        adapters = [value for name, value in params.items() if not name.startswith(f"{self.head}.")]
        groups = [{"params": adapters, "lr": self.lr}, {"params": heads, "lr": self.lr * self.head_lr_scale}]
        groups = [group for group in groups if group["params"]]
        # A fused optimizer hides from accelerate the steps that fp16's loss scaling skips.
        optimizer = torch.optim.AdamW(groups, weight_decay=self.weight_decay, fused=self.accelerator.scaler is None)
        warmup = int(np.ceil(self.warmup_ratio * self.total_steps))
        self.schedule = get_linear_schedule_with_warmup(optimizer, warmup, self.total_steps)
        self.model, self.optimizer = self.accelerator.prepare(self.model, optimizer)
        self.guard = ReplicaGuard(list(params.values()), self.replicas, self.max_grad_norm, self.accelerator)

    @property
    def step(self) -> int:
        return self.epoch * self.batches.steps_per_epoch

    def train_epoch(self, on_step=lambda step, losses: None) -> None:
        """Train one epoch, evaluate, and append to `history`. `on_step(step, (R,) losses on the device)` may watch."""
        start, step = time.perf_counter(), self.step
        # Dropout is drawn from (seeds, epoch, process) alone, so a resumed run draws what the unbroken one would have.
        torch.manual_seed(derive("dropout", self.seeds, self.epoch, self.accelerator.process_index))
        self.model.train()
        totals = torch.zeros(2, self.replicas, device=self.accelerator.device)
        for micro_batches in self.batches.epoch(self.epoch):
            for batch in micro_batches:
                batch = {name: value.to(self.accelerator.device, non_blocking=True) for name, value in batch.items()}
                with self.accelerator.accumulate(self.model):
                    self.method.before_forward(step)
                    loss = self.task.loss(self.model, batch, self.replicas)
                    penalty = self.method.penalty()
                    self.accelerator.backward((loss + penalty).sum())
                    self.guard.watch(loss + penalty, step)
                    if self.accelerator.sync_gradients:
                        self.guard.clip(self.optimizer)
                    self.optimizer.step()
                    if self.accelerator.sync_gradients and not self.accelerator.optimizer_step_was_skipped:
                        self.rate = self.schedule.get_last_lr()[0]
                        self.schedule.step()
                        self.method.after_optimizer_step(step)
                    self.optimizer.zero_grad()
                totals += torch.stack(
                    [loss.detach(), torch.as_tensor(penalty, device=loss.device).detach().expand_as(loss)]
                )
            step += 1
            on_step(step, totals[0] / self.batches.accumulation)
        self.epoch += 1
        totals = self.accelerator.reduce(totals, "mean") / (self.batches.steps_per_epoch * self.batches.accumulation)
        losses = totals.T.tolist()  # waits for the device: training ends here
        trained = time.perf_counter()
        scores = self.evaluate()
        times = {"train_seconds": round(trained - start, 3), "eval_seconds": round(time.perf_counter() - trained, 3)}
        if self.epoch == self.epochs:
            self.method.after_training(self.evaluate)
        entry = {"epoch": self.epoch, "step": step, "lr": self.rate}
        for k, (loss, penalty) in enumerate(losses):
            if scores[k] is None:
                self.guard.stop(k, step)
            if self.failed[k] is None:
                means = {"train_loss": round(loss, 6), "penalty": round(penalty, 9)}
                report = self.method.report(k)
                if self.epoch == self.epochs:
                    report["singular_values_above_0.1"] = self.method.spectrum(k)
                self.history[k].append({**entry, **means, **scores[k], **times, "report": report})

    @torch.no_grad()
    def evaluate(self) -> list[dict | None]:
        """Per replica, {"metrics": ..., "halves": [..., ...]} over the task's splits; None if an output is not finite."""
        model, index, count = self.plain_model.eval(), self.accelerator.process_index, self.accelerator.num_processes
        logits: dict[str, np.ndarray] = {}  # (R, rows, num_labels) of each split
        for name, split in self.task.evaluation.items():
            parts = []
            for rows, batch in evaluation_batches(split, self.eval_batch_size, index, count):
                del batch["labels"]
                inputs = {
                    key: value.to(self.accelerator.device).repeat(self.replicas, 1) for key, value in batch.items()
                }
                parts.append((rows, model(**inputs).logits.float().view(self.replicas, len(rows), -1).cpu().numpy()))
            parts = gather_object(parts) if count > 1 else parts
            order = np.argsort(np.concatenate([rows for rows, _ in parts]))
            logits[name] = np.concatenate([values for _, values in parts], axis=1)[:, order]
        return [self._score({name: values[k] for name, values in logits.items()}) for k in range(self.replicas)]

    def _score(self, logits: dict[str, np.ndarray]) -> dict | None:
        if not all(np.isfinite(values).all() for values in logits.values()):
            return None
        return {"metrics": self.task.score(logits), "halves": [self.task.score(logits, half=half) for half in (0, 1)]}

    @property
    def failed(self) -> list[int | None]:
        return [None if step < 0 else step for step in self.guard.failed_at.tolist()]

    def state_dict(self) -> dict:
        """Everything that resuming needs and (seeds, epoch) do not determine."""
        scaler = self.accelerator.scaler
        return {
            "epoch": self.epoch,
            "history": self.history,
            "failed_at": self.guard.failed_at.cpu(),
            "params": {name: value.cpu() for name, value in adapter_tensors(self.plain_model).items()},
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "method": self.method.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        self.epoch, self.history = state["epoch"], state["history"]
        self.guard.failed_at.copy_(state["failed_at"])
        for name, value in adapter_tensors(self.plain_model).items():
            value.copy_(state["params"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.method.load_state_dict(state["method"])

    @property
    def plain_model(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.model)


class ReplicaGuard:
    """Clips each replica's gradient by its own norm, and stops a replica whose loss is no longer finite.

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
        for grad in grads:
            grad.masked_fill_(dead[:, None], 0.0)
        self.accelerator.unscale_gradients(optimizer)
        norm = torch.stack([grad.square().sum(1) for grad in grads]).sum(0).sqrt()
        scale = (self.max_norm / (norm + 1e-6)).clamp(max=1.0)
        for grad in grads:
            grad.mul_(scale[:, None])
