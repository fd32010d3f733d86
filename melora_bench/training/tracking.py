"""A tracker (TensorBoard, Weights & Biases) that is told each replica's numbers after every evaluation."""

import importlib.util
import json
import textwrap
from pathlib import Path

from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

from melora_bench.external.shapes import leaves
from melora_bench.training.points import Point
from melora_bench.training.trainer import Trainer


def check_tracker(tracker: str | None) -> None:
    """Raises ValueError for a tracker that is unknown or whose package is not installed."""
    if tracker not in (None, "tensorboard", "wandb"):
        raise ValueError(f"tracker={tracker!r} is unknown: use tensorboard or wandb")
    if tracker and not importlib.util.find_spec(tracker):
        raise ValueError(f"tracker={tracker} is not installed: pip install -c requirements.lock -e '.[track]'")


class Tracker:
    """The tracker of one packed run; of a config without one, it does nothing.

    Every replica is a run of its own, called by its settings and seed; its numbers have the same tags as any other's,
    so that methods share a chart.
    """

    def __init__(self, point: Point, trainer: Trainer) -> None:
        self.point, self.trainer = point, trainer
        self.runs: dict[int, GeneralTracker] = {}

    def log(self) -> None:
        """Tell the numbers of the evaluation that the trainer has just made."""
        if not self.point.config.tracker or not self.trainer.accelerator.is_main_process:
            return
        for seed, history in zip(self.trainer.seeds, self.trainer.history, strict=True):
            if history and history[-1]["step"] == self.trainer.step:
                last = {key: history[-1][key] for key in ("train_loss", "penalty", "lr")} | history[-1]["metrics"]
                self._run(seed).log(last, step=self.trainer.step)

    def close(self) -> None:
        """Finish the tracker's files."""
        for run in self.runs.values():
            run.finish()

    def _run(self, seed: int) -> GeneralTracker:
        if seed not in self.runs:
            self.runs[seed] = self._begin(seed)
        return self.runs[seed]

    def _begin(self, seed: int) -> GeneralTracker:
        config, label = self.point.config, self.point.label
        name = f"{config.experiment}/{label} {self.point.name.rpartition('-')[2]}-s{seed}"
        settings = {key: str(value) for key, value in leaves(self.point.identity)} | {"seed": seed}
        run: GeneralTracker
        if config.tracker == "wandb":
            run = WandBTracker("melora_bench", name=name, group=label, config=settings, reinit="create_new")
            run.start()
            return run
        run = TensorBoardTracker(name, Path(config.output_dir, "tensorboard"))
        run.start()
        # Where accelerate stores settings, it makes a second run.
        run.log({"settings": textwrap.indent(json.dumps(settings, indent=2), "    ")})
        return run
