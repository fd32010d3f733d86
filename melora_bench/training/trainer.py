"""The training loop: R replicas on one frozen backbone, evaluated and checkpointed after each round (mostly an epoch).

It knows no method and no task by name: a method acts through its hooks, a task through `loss`, `outputs` and `score`.
"""

import dataclasses
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import get_linear_schedule_with_warmup

from melora_bench.adapters.files import trainable
from melora_bench.adapters.optimizer import param_groups
from melora_bench.methods.base import Method
from melora_bench.seeding import derive
from melora_bench.tasks.base import Task
from melora_bench.tasks.batches import Batch, TrainBatches, evaluation_batches
from melora_bench.training.evaluation import collect_outputs, score
from melora_bench.training.guard import ReplicaGuard
from melora_bench.training.schedule import Schedule

log = logging.getLogger(__name__)
OnStep = Callable[[int, Tensor], None]


def ignore(step: int, losses: Tensor) -> None:
    """Nobody watches."""


@dataclass(kw_only=True)
class Trainer:
    """One packed run. `history[k]` holds replica k's evaluations; `failed[k]` the step at which its loss, or its
    outputs in the evaluation after it, were not finite."""

    accelerator: Accelerator
    model: nn.Module
    method: Method
    task: Task
    batches: TrainBatches
    schedule: Schedule
    lr: float
    head_lr_scale: float
    weight_decay: float
    no_decay: list[str] | None  # endings of the names of tensors without weight decay
    max_grad_norm: float
    eval_batch_size: int
    step: int = 0  # finished optimizer steps
    rate: float = 0.0  # the adapters' learning rate in the last step
    history: list[list[dict]] = field(init=False)

    def __post_init__(self) -> None:
        self.seeds, self.replicas = self.batches.seeds, len(self.batches.seeds)
        self.history = [[] for _ in self.seeds]
        params = list(trainable(self.model).values())
        groups = param_groups(self.model, self.method, self.lr, self.lr * self.head_lr_scale, self.no_decay or ())
        # A fused optimizer hides from accelerate the steps that fp16's loss scaling skips.
        optimizer = torch.optim.AdamW(groups, weight_decay=self.weight_decay, fused=self.accelerator.scaler is None)
        self.decay = get_linear_schedule_with_warmup(optimizer, self.schedule.warmup, self.schedule.total)
        self.model = self.accelerator.prepare_model(self.model, evaluation_mode=True)  # not wrapped: the guard averages
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)
        self.guard = ReplicaGuard(params, self.replicas, self.max_grad_norm, self.accelerator)

    def compile(self) -> bool:
        """Compile the model, and try it on a batch of each kind; where that fails it runs as it is, with a warning."""
        # All models share one limit of recompilations, beyond which they run as they are, silently.
        torch._dynamo.reset()
        self.model.train().compile(dynamic=True)
        self.method.before_forward(0)
        split = next(iter(self.task.evaluation.values()))
        try:
            self._loss(next(self.batches.epoch(0))[0]).sum().backward()
            with torch.no_grad():
                self.outputs(next(evaluation_batches(split, self.eval_batch_size, replicas=self.replicas))[1])
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

    def train_steps(self, until: int, on_step: OnStep = ignore) -> Tensor:
        """Train to step `until` without evaluating; returns (2, R): the sums of the losses and of the penalties over
        the micro-batches of this process. `on_step(step, (R,) sums of losses)` may watch."""
        self.model.train()
        totals = torch.zeros(2, self.replicas, device=self.accelerator.device)
        for step, micro_batches in enumerate(self.batches.steps(self.step, until), self.step):
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
            self.step = step + 1
            on_step(self.step, totals[0] / self.batches.accumulation)
        return totals

    def train_round(self, on_step: OnStep = ignore) -> None:
        """Train to the next evaluation, evaluate, and append to `history`."""
        start, first = time.perf_counter(), self.step
        if first == 0:
            self._before_training()
        # Dropout is drawn from (seeds, round, process) alone, so a resumed run draws what the unbroken one would have.
        torch.manual_seed(derive("dropout", self.seeds, first // self.schedule.round, self.accelerator.process_index))
        totals = self.train_steps(min(first + self.schedule.round, self.schedule.total), on_step)
        totals = self.accelerator.reduce(totals, "mean") / ((self.step - first) * self.batches.accumulation)
        losses = totals.T.tolist()  # waits for the device: training ends here
        trained = time.perf_counter()
        scores = self.evaluate()
        times = {"train_seconds": round(trained - start, 3), "eval_seconds": round(time.perf_counter() - trained, 3)}
        if self.finished:
            self.method.after_training(self.evaluate)
        early = self.step < self.method.selectable_from and not self.finished
        entry = {"epoch": self.epoch, "step": self.step, "lr": self.rate, **({"selectable": False} if early else {})}
        for k, (loss, penalty) in enumerate(losses):
            scored = scores[k]
            if scored is None:
                self.guard.stop(k, self.step)
            elif self.failed[k] is None:
                means = {"train_loss": round(loss, 6), "penalty": round(penalty, 9)}
                report = self.method.report(k)
                if self.finished and (spectrum := self.method.spectrum(k)) is not None:
                    report["singular_values_above_0.1"] = spectrum
                self.history[k].append({**entry, **means, **scored, **times, "report": report})

    def _before_training(self) -> None:
        """Let the method look at the first epoch's steps: one batch each, the same in every process."""
        whole = dataclasses.replace(self.batches, accumulation=1, processes=1, process=0)
        self.model.eval()
        self.method.before_training((batch for [batch] in whole.epoch(0)), self._loss)
        self.optimizer.zero_grad()

    def _loss(self, batch: Batch) -> Tensor:
        """(R,)"""
        return self.task.loss(self.model, self._on_device(batch), self.replicas)

    def outputs(self, batch: Batch) -> Tensor:
        """(R * rows, numbers per row) of one evaluation batch."""
        return self.task.outputs(self.model.eval(), self._on_device(batch)).float()

    def _on_device(self, batch: Batch) -> Batch:
        return {name: value.to(self.accelerator.device, non_blocking=True) for name, value in batch.items()}

    @torch.no_grad()
    def evaluate(self) -> list[dict | None]:
        """By replica, {"metrics": ..., "halves": [..., ...]} over all splits; None if an output is not finite."""
        outputs = collect_outputs(
            self.task.evaluation, self.outputs, like=self.batches, batch_size=self.eval_batch_size
        )
        return [score(self.task, {name: values[k] for name, values in outputs.items()}) for k in range(self.replicas)]

    @property
    def failed(self) -> list[int | None]:
        return [None if step < 0 else step for step in self.guard.failed_at.tolist()]
