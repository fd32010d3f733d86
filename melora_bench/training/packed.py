"""One packed run: its seeds side by side on one backbone, trained to the end from where an interrupted start left
them."""

import functools
import logging
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from melora_bench.records import provenance
from melora_bench.records.identity import config_hash
from melora_bench.records.inputs import difference, of_data, of_model, of_start
from melora_bench.training import checkpoints
from melora_bench.training.build import Parts, build
from melora_bench.training.points import Point
from melora_bench.training.processes import agreed
from melora_bench.training.progress import waiting
from melora_bench.training.recording import keep_adapters, summarise, write_records
from melora_bench.training.reporting import one_line
from melora_bench.training.state import restore, state_of
from melora_bench.training.tracking import Tracker
from melora_bench.training.view import RunView

log = logging.getLogger(__name__)


def train(point: Point, seeds: list[int]) -> list[Path]:
    """Train these seeds of a point side by side; returns the records written. Raises ValueError as `PackedRun.execute`
    does, and for what cannot be built."""
    with waiting(f"{point.label}  data and weights are read"):
        parts = build(point, seeds)
    return PackedRun(point=point, seeds=seeds, parts=parts).execute()


@dataclass(kw_only=True)
class PackedRun:
    """The seeds of one point that train side by side, and what earlier starts of the same run did."""

    point: Point
    seeds: list[int]
    parts: Parts
    seconds_before: float = 0.0
    resumed_at: list[int | float] = field(default_factory=list)  # epochs after which the run was interrupted
    earlier: list[dict] = field(default_factory=list)  # the parts that other code, versions or devices trained

    def execute(self) -> list[Path]:
        """Train to the end, a checkpoint after each round; write the records. Raises ValueError if a replica failed."""
        trainer, main = self.parts.trainer, self.parts.accelerator.is_main_process
        self._resume()
        if main:
            self._prepare_folders()
        tracker = Tracker(self.point, trainer)
        try:
            with RunView(self.point, trainer, quiet=not main) as view:
                while not trainer.finished and None in trainer.failed:
                    trainer.train_round(view.on_step)
                    view.on_round()
                    if main:
                        keep_adapters(self.point, self.parts)
                        checkpoints.save_checkpoint(self._checkpoint, self._state())
                    tracker.log()
            paths = self._write_records() if main else []
            if main:
                self._checkpoint.unlink(missing_ok=True)
            self.parts.accelerator.wait_for_everyone()
        finally:
            tracker.close()
        if main:
            summarise(self.point, self.parts, paths, seconds=self.seconds)
        self._refuse_failed()
        return paths

    @property
    def seconds(self) -> float:
        """The wall-clock time of the run so far, reading and building included."""
        return self.seconds_before + time.perf_counter() - self.parts.clock

    @functools.cached_property
    def part(self) -> dict[str, Any]:
        """Who trains: code, versions and device may change when a run goes on, and its record then lists the parts."""
        settings = vars(self.point.config) | {"compile": self.parts.compiled}
        return {**self.parts.code, "env": provenance.environment(self.parts.accelerator, settings)}

    @functools.cached_property
    def _checkpoint(self) -> Path:
        return self.point.checkpoint(self.seeds)

    def _prepare_folders(self) -> None:
        """Raises OSError where no file can be written: before the hours of training that would be lost."""
        outputs = [self.point.output(seed) for seed in self.seeds]
        for folder in (self._checkpoint.parent, self.point.record_path(self.seeds[0]).parent, *outputs):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        for folder in outputs:
            (folder / "error.txt").unlink(missing_ok=True)

    @functools.cached_property
    def _run(self) -> dict[str, Any]:
        """The facts that a checkpoint must share with the run that goes on from it."""
        data = {split: part["sha256"] if part else None for split, part in self.parts.data.items()}
        starts = {
            f"{key} of seed {seed}": sha256
            for seed, start in zip(self.seeds, self.parts.starts, strict=True)
            for key, sha256 in of_start(start).items()
        }
        total = self.parts.trainer.schedule.total
        asked = {"config": config_hash(self.point.identity), "seeds": self.seeds, "steps": total}
        return asked | of_data(data) | of_model(self.parts.origin) | starts

    def _write_records(self) -> list[Path]:
        env = self.part["env"] | ({"earlier": self.earlier} if self.earlier else {})
        return write_records(self.point, self.parts, env=env, seconds=self.seconds, resumed_at=self.resumed_at)

    def _state(self) -> dict[str, Any]:
        return {
            "run": self._run,
            "part": self.part,
            "earlier": self.earlier,
            "trainer": state_of(self.parts.trainer),
            "seconds": self.seconds,
            "resumed_at": self.resumed_at,
        }

    def _resume(self) -> None:
        """Go on from the checkpoint, if there is one. Raises ValueError for a checkpoint of another run."""
        path, trainer = self._checkpoint, self.parts.trainer
        if not agreed(path.exists()):
            return
        state = checkpoints.load_checkpoint(path)
        if differing := difference(state["run"], self._run):
            raise ValueError(
                f"{path} was begun as another run ({differing}): give experiment=NAME to keep both, or "
                "delete that file to start this run again"
            )
        try:
            restore(trainer, state["trainer"])
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(
                f"{path} does not fit this run ({one_line(error)}); delete it to start that run again"
            ) from error
        self.seconds_before, self.resumed_at = state["seconds"], [*state["resumed_at"], trainer.epoch]
        self.earlier = state["earlier"]
        if state["part"] != self.part:
            self.earlier = [*self.earlier, {"until_epoch": trainer.epoch, **state["part"]}]
            log.warning(
                "%s goes on with other code, versions or device than it was begun with: its record lists both",
                self.point.label,
            )
        log.info("resume  %s  after epoch %g", self.point.label, trainer.epoch)

    def _refuse_failed(self) -> None:
        failed = {
            seed: step for seed, step in zip(self.seeds, self.parts.trainer.failed, strict=True) if step is not None
        }
        if failed:
            what = "; ".join(f"seed {seed} stopped at step {step}" for seed, step in failed.items())
            raise ValueError(
                f"{self.parts.task.name} {self.point.name}: {what}: its loss was not finite, no record was written; "
                f"try a lower lr than {self.point.config.lr}"
            )
