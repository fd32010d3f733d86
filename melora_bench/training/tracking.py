"""A tracker (TensorBoard, Weights & Biases) that is told each replica's numbers after every evaluation."""

import importlib.util

from melora_bench.external.shapes import leaves
from melora_bench.training.points import Point
from melora_bench.training.trainer import Trainer


def check_tracker(tracker: str | None) -> None:
    """Raises ValueError for a tracker whose package is not installed."""
    if tracker and not importlib.util.find_spec(tracker):
        raise ValueError(f"tracker={tracker} is not installed: pip install -c requirements.lock -e '.[track]'")


class Tracker:
    """The tracker of one packed run; of a config without one, it does nothing."""

    def __init__(self, point: Point, trainer: Trainer) -> None:
        self.point, self.trainer = point, trainer

    def log(self) -> None:
        """Tell the numbers of the evaluation that the trainer has just made."""
        if not self.point.config.tracker:
            return
        trainer, accelerator = self.trainer, self.trainer.accelerator
        if not accelerator.trackers:
            flat = {key: str(value) for key, value in leaves(self.point.identity)}
            accelerator.init_trackers("melora_bench", config=flat)
        values: dict[str, float] = {}
        for seed, history in zip(trainer.seeds, trainer.history, strict=True):
            if history and history[-1]["step"] == trainer.step:
                last = {key: history[-1][key] for key in ("train_loss", "penalty", "lr")} | history[-1]["metrics"]
                place = f"{trainer.task.name}/{self.point.name}-s{seed}"
                values |= {f"{place}/{key}": value for key, value in last.items()}
        accelerator.log(values, step=trainer.step)

    def close(self) -> None:
        """Finish the tracker's files."""
        for tracker in self.trainer.accelerator.trackers:
            tracker.finish()
