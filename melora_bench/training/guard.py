"""What keeps the replicas of a packed run apart: gradients are clipped per replica,
and one that goes bad stops alone."""

from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn


class ReplicaGuard:
    """Averages gradients over processes, clips each replica's by its own norm, and stops a replica whose loss is no
    longer finite.

    A stopped replica's gradients are 0 from then on; the others never notice. In fp16 one thing is shared, the loss
    scale: a replica whose gradients overflow makes all skip that step. `watch` and `clip` do not wait for the device.
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
        """Scale each replica's gradient to at most `max_norm`;
        a stopped replica's to 0 before fp16's overflow check."""
        dead = self.failed_at >= 0
        grads = [cast(Tensor, param.grad).view(len(dead), -1) for param in self.params]
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
