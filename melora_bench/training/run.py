"""Running one point: which seeds are still to be done, training them side by side, one record for each."""

import contextlib
import functools
import gc
import importlib.util
import logging
import os
import time
import traceback
from pathlib import Path

import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from hydra.errors import CompactHydraException, InstantiationException
from omegaconf import DictConfig

from melora_bench.external.shapes import leaves
from melora_bench.files import probe, reason, write_text
from melora_bench.methods.dropout import replace_dropouts
from melora_bench.models.backbones import check_device, check_dtype
from melora_bench.models.streams import check_layout
from melora_bench.records import provenance, records
from melora_bench.records.identity import config_hash
from melora_bench.tasks.batches import TrainBatches
from melora_bench.training import checkpoints
from melora_bench.training.configs import build
from melora_bench.training.inputs import difference, of_data, of_model, of_start, refusals
from melora_bench.training.points import Point
from melora_bench.training.processes import agreed, count, is_main
from melora_bench.training.progress import RunProgress
from melora_bench.training.schedule import Schedule
from melora_bench.training.sharding import refuse_launch, shard_backbone
from melora_bench.training.starts import load_start
from melora_bench.training.trainer import Trainer

LIMITS = ("max_length", "max_train_rows", "max_eval_rows")

log = logging.getLogger(__name__)


class RunError(CompactHydraException):
    """A run that cannot go on, in one line: Hydra prints it without a traceback and exits with a code other than 0."""


def run(cfg: DictConfig, choices: dict) -> list[Path]:
    """Train the seeds of one point that have no record yet; returns the records written.

    Raises RunError, once the other seeds are done, for seeds that failed or whose record is that of another run. Each has
    its one line, logged, and where it failed in training also in error.txt among its outputs.
    """
    paths: list[Path] = []
    lines: list[str] = []
    point, seeds = None, []
    try:
        point = Point.of(cfg, choices)
        with contextlib.ExitStack() as stack:
            todo, mine = agreed(point.todo()), False
            if todo:  # another user's finished point is skipped without that user's lock
                mine = agreed(is_main() and stack.enter_context(point.claimed()))
                todo = agreed(point.todo())
            elif is_main() and point.leftovers():
                with contextlib.suppress(ValueError), point.claimed(wait=0):  # which removes them
                    pass
            done = [seed for seed in point.config["seeds"] if seed not in todo]
            about = f"{point.choices['task']} {point.name}"
            if done and is_main():
                refused = refusals(point, done)
                lines += [_failed(point, [], ValueError(why)) for why in refused.values()]
                if kept := [seed for seed in done if seed not in refused]:
                    log.info("skip  %s  seeds %s are recorded: %s", about, kept, point.record(kept[0]))
            if todo and not mine:
                log.info(
                    "busy  %s  another process holds it: seeds %s are left to it, or to a later start", about, todo
                )
            packs = point.packs(todo) if mine else []
            if packs:
                log.info("train  %s  seeds %s  %s", about, todo, point.recipe)
            while packs:
                seeds, *packs = packs
                checkpoint = point.output(*seeds) / "checkpoint.pt"
                resumed = checkpoint.exists()
                try:
                    paths += PackedRun(point, seeds).execute()
                except ValueError as error:  # the seeds of another pack are none the worse for it
                    lines.append(_failed(point, seeds, error))
                except torch.OutOfMemoryError as error:
                    if len(seeds) == 1 or resumed or count() > 1:
                        lines.append(_failed(point, seeds, error))
                        packs = []
                    else:
                        half = -(-len(seeds) // 2)
                        checkpoint.unlink(missing_ok=True)
                        packs = [seeds[:half], seeds[half:], *packs]
                        log.warning("waves  %s  %d seeds side by side are too many for the device's memory: %s", about,
                                    len(seeds), " then ".join(map(str, packs)))  # fmt: skip
            seeds = []
    except Exception as error:
        lines.append(_failed(point, seeds, error))
    # Outside the except blocks: a sweep keeps the exception, which must not keep the failed run's model alive.
    if lines and count() > 1:
        os._exit(1)  # the other processes wait for this one: their launcher ends them
    if lines:
        raise RunError(f"error: {lines[0]}")
    return paths


def _failed(point: Point | None, seeds: list[int], error: Exception) -> str:
    """The one line of an error, logged, and written to error.txt of those of its seeds that have no record."""
    if isinstance(error, torch.OutOfMemoryError):
        error = ValueError("the device is out of memory at batch_size={batch_size}, eval_batch_size={eval_batch_size}: in "
                           "training raise accumulation, in evaluation lower eval_batch_size, or give fewer seeds; the "
                           "next start goes on from the last evaluation's checkpoint, if there was one"
                           .format(**point.config))  # fmt: skip
    line = _one_line(error)
    log.error("error: %s", line)
    if is_main():
        with contextlib.suppress(OSError):  # the disk may be what failed
            for seed in seeds:
                if not point.record(seed):
                    write_text(point.output(seed) / "error.txt", f"{line}\n\n{traceback.format_exc()}")
    return line


def load_task(config: dict, backbone) -> tuple[object, dict]:
    """The task of a config with its rows read and tokenised, and what the record says of them. Raises ValueError."""
    task, source = (build(config[group], group) for group in ("task", "data"))
    backbone.suit(task.num_labels)
    return task, task.load(source, backbone.tokenizer(), **{key: config[key] for key in LIMITS})


class PackedRun:
    """The parts of one packed run: built, resumed, trained, recorded."""

    def __init__(self, point: Point, seeds: list[int]) -> None:
        config = point.config
        self.point, self.seeds, self.config = point, seeds, config
        self.started, self.clock, self.seconds_before = provenance.now(), time.perf_counter(), 0.0
        self.resumed_at: list[int] = []
        self.earlier: list[dict] = []  # the parts of the run that other code, versions or devices trained
        if torch.cuda.is_available():  # of a run before this one, whose error may have kept it alive
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        AcceleratorState._reset_state(reset_partial_state=False)  # an earlier run may have had another precision
        GradientState._reset_state()
        if config["tracker"] and not importlib.util.find_spec(config["tracker"]):
            raise ValueError(
                f"tracker={config['tracker']} is not installed: pip install -c requirements.lock -e '.[track]'"
            )
        refuse_launch(config)
        check_device(config["precision"])
        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision=config["precision"],
            gradient_accumulation_steps=config["accumulation"],
            log_with=config["tracker"],
            project_dir=config["output_dir"],
        )
        self.method, self.backbone = (build(config[group], group) for group in ("method", "backbone"))
        self.task, self.data = load_task(config, self.backbone)
        # Now: all three may have changed by the end.
        self.origin, self.git, self.code = self.backbone.origin(), provenance.git_state(), provenance.code_sha256()
        model, head = self.backbone.model(self.task.num_labels), self.backbone.head
        check_dtype(model, config["precision"])
        replace_dropouts(model)
        longest = max(int(split.lengths.max()) for split in self.task.splits.values())
        if longest > self.backbone.longest(model):
            most = self.backbone.longest(model)
            raise ValueError(f"max_length={config['max_length']} lets texts of {longest} tokens through, "
                             f"backbone {self.backbone.name} reads {most}: lower it to that")  # fmt: skip
        streams = check_layout(config["layout"], model, self.accelerator.device) and not config["compile"]
        self.batches = TrainBatches(
            split=self.task.train,
            seeds=seeds,
            batch_size=config["batch_size"],
            bucket=config["bucket"],
            accumulation=config["accumulation"],
            first_position=self.backbone.first_position(model) if streams else None,
            processes=self.accelerator.num_processes,
            process=self.accelerator.process_index,
        )
        schedule = Schedule.of(config, len(self.task.train.labels))
        self.method.attach(model, head, seeds, schedule.total)
        self.starts = [load_start(point, seed, k, model, self.method, head) for k, seed in enumerate(seeds)]
        self.params = checkpoints.counts(model, head)
        if config["shard"]:
            shard_backbone(model, self.accelerator)
        keys = ("lr", "head_lr_scale", "weight_decay", "max_grad_norm", "eval_batch_size")
        self.trainer = Trainer(
            accelerator=self.accelerator,
            model=model,
            method=self.method,
            task=self.task,
            batches=self.batches,
            schedule=schedule,
            head=head,
            **{key: config[key] for key in keys},
        )
        self.compiled = config["compile"] and self.trainer.compile()

    def execute(self) -> list[Path]:
        """Train to the end, a checkpoint after each round; write the records. Raises ValueError if a replica failed."""
        trainer, main = self.trainer, self.accelerator.is_main_process
        checkpoint = self.point.output(*self.seeds) / "checkpoint.pt"
        self._resume(checkpoint)
        if main:
            own = [self.point.output(seed) for seed in self.seeds]
            for folder in (checkpoint.parent, self._results, *own):
                probe(folder)  # before the hours of training that would be lost
            for folder in own:
                (folder / "error.txt").unlink(missing_ok=True)
        try:
            name = f"{self.task.name} {self.point.name}"
            with RunProgress(name, trainer, len(self.seeds) * self.config["batch_size"], quiet=not main) as progress:
                while not trainer.finished and None in trainer.failed:
                    trainer.train_round(progress.on_step)
                    progress.on_round(self.task.metric)
                    if main:
                        self._keep_adapters()
                        checkpoints.save_checkpoint(checkpoint, self._state())
                    self._track()
            paths = self._write_records() if main else []
            if main:
                checkpoint.unlink(missing_ok=True)
            self.accelerator.wait_for_everyone()
        finally:
            for tracker in self.accelerator.trackers:
                tracker.finish()
        failed = {seed: step for seed, step in zip(self.seeds, trainer.failed, strict=True) if step is not None}
        if main:
            self._summarise(paths)
        if failed:
            what = "; ".join(f"seed {seed} stopped at step {step}" for seed, step in failed.items())
            raise ValueError(f"{self.task.name} {self.point.name}: {what}: its loss was not finite, no record was written; "
                             f"try a lower lr than {self.config['lr']}")  # fmt: skip
        return paths

    @property
    def _results(self) -> Path:
        return Path(self.config["results_dir"], "runs", self.point.run_id(self.seeds[0])).parent

    @property
    def _about(self) -> dict:
        """What both the records and the adapter files say of the run."""
        identity = self.point.identity
        return {"choices": self.point.choices, "config": identity, "config_hash": config_hash(identity),
                "git": self.git, "model": self.origin}  # fmt: skip

    @property
    def _seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.clock

    @functools.cached_property
    def _run(self) -> dict:
        """What a checkpoint must agree about with the run that goes on from it."""
        data = {split: part and part["sha256"] for split, part in self.data.items()}
        starts = {f"{key} of seed {seed}": sha256 for seed, start in zip(self.seeds, self.starts, strict=True)
                  for key, sha256 in of_start(start).items()}  # fmt: skip
        whole = {
            "config": config_hash(self.point.identity),
            "seeds": self.seeds,
            "steps": self.trainer.schedule.total,
        }
        return whole | of_data(data) | of_model(self.origin) | starts

    @functools.cached_property
    def _part(self) -> dict:
        """Who trains: code, versions and device may change when a run goes on, and its record then lists the parts."""
        env = provenance.environment(self.accelerator, {**self.config, "compile": self.compiled})
        return {"git": self.git, "code": self.code, "env": env}

    def _state(self) -> dict:
        return {"run": self._run, "part": self._part, "earlier": self.earlier, "trainer": self.trainer.state_dict(),
                "seconds": self._seconds, "resumed_at": self.resumed_at}  # fmt: skip

    def _resume(self, checkpoint: Path) -> None:
        if not agreed(checkpoint.exists()):
            return
        state = checkpoints.load_checkpoint(checkpoint)
        if differing := difference(state["run"], self._run):
            raise ValueError(f"{checkpoint} was begun as another run ({differing}): give experiment=NAME to keep both, or "
                             "delete that file to start this run again")  # fmt: skip
        try:
            self.trainer.load_state_dict(state["trainer"])
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(
                f"{checkpoint} does not fit this run ({_one_line(error)}); delete it to start that run again"
            ) from error
        epoch = self.trainer.epoch
        self.seconds_before, self.resumed_at = state["seconds"], [*state["resumed_at"], epoch]
        self.earlier = state["earlier"]
        if state["part"] != self._part:
            self.earlier = [*self.earlier, {"until_epoch": epoch, **state["part"]}]
            log.warning("%s %s goes on with other code, versions or device than it was begun with: its record lists both",
                        self.task.name, self.point.name)  # fmt: skip
        log.info("resume  %s %s  after epoch %g", self.task.name, self.point.name, epoch)

    def _track(self) -> None:
        if not self.config["tracker"]:
            return
        if not self.accelerator.trackers:
            self.accelerator.init_trackers(
                "melora_bench", config={key: str(value) for key, value in leaves(self.point.identity)}
            )
        values = {}
        for seed, history in zip(self.seeds, self.trainer.history, strict=True):
            if history and history[-1]["step"] == self.trainer.step:
                last = {key: history[-1][key] for key in ("train_loss", "penalty", "lr")} | history[-1]["metrics"]
                values |= {f"{self.task.name}/{self.point.name}-s{seed}/{key}": value for key, value in last.items()}
        self.accelerator.log(values, step=self.trainer.step)

    def _keep_adapters(self) -> None:
        """last.safetensors of every seed, and best.safetensors of the seeds that have just reached their best."""
        model = self.trainer.model
        for k, (seed, history) in enumerate(zip(self.seeds, self.trainer.history, strict=True)):
            if not history or history[-1]["step"] != self.trainer.step:
                continue
            about = {**self._about, "run_id": self.point.run_id(seed), "seed": seed, **history[-1]}
            about["total_steps"] = self.trainer.schedule.total
            folder = self.point.output(seed)
            checkpoints.save_adapter(folder / "last.safetensors", model, k, about)
            if records.best_entry(history, self.task.metric) is history[-1]:
                checkpoints.save_adapter(folder / "best.safetensors", model, k, about)

    def _write_records(self) -> list[Path]:
        cuda = self.accelerator.device.type == "cuda"
        shared = {
            **self._about,
            "versions": {"method": self.method.version, "task": self.task.version},
            "env": self._part["env"] | ({"earlier": self.earlier} if self.earlier else {}),
            "data": self.data,
            "params": self.params,
            "metric": self.task.metric,
            "peak_memory_bytes": torch.cuda.max_memory_allocated() if cuda else None,
            "wall_seconds": round(self._seconds, 3),
            "resumed_at": self.resumed_at,
            "started": self.started,
            "finished": provenance.now(),
        }
        paths = []
        for k, seed in enumerate(self.seeds):
            if self.trainer.failed[k] is not None or self.point.record(seed):
                continue
            history = self.trainer.history[k]
            seconds = sum(entry["train_seconds"] for entry in history)
            split, epochs = self.task.train, history[-1]["epoch"]
            record = records.RunRecord(
                run_id=self.point.run_id(seed),
                seed=seed,
                packed_with=[other for other in self.seeds if other != seed],
                init_from=self.starts[k],
                epochs=history,
                rows_per_second=round(epochs * len(split.labels) / seconds, 2),
                tokens_per_second=round(epochs * len(split.ids) / seconds, 1),
                **shared,
            )
            paths.append(record.save(self.config["results_dir"]))
        return paths

    def _summarise(self, paths: list[Path]) -> None:
        found = {seed: path for seed in self.seeds if (path := self.point.record(seed))}
        good = [records.load(path) for path in found.values()]
        if others := [seed for seed, path in found.items() if path not in paths]:
            log.info("skip  %s  seeds %s had been recorded before this run ended", self.point.name, others)
        scores = " ".join(f"{records.best_epoch(record)['metrics'][record.metric]:.4f}" for record in good) or "none"
        speed = sum(record.rows_per_second for record in good)
        files = [self.point.output(record.seed) / f"{kind}.safetensors" for record in good for kind in ("best", "last")]
        sizes = sum(file.stat().st_size for file in files) / 1e6
        where = str(found[good[0].seed]).replace(f"-s{good[0].seed}.json", "-s*.json") if good else "no record"
        log.info("done  %s %s  %d of %d seeds  best %s %s  %s adapter parameters  %.0f rows/s  %.0f s  %s", self.task.name,
                 self.point.name, len(good), len(self.seeds), self.task.metric, scores, f"{self.params['adapter']:,}",
                 speed, self._seconds, where)  # fmt: skip
        if files:
            log.info("adapters  best and last epoch, %d files, %.1f MB: %s", len(files), sizes,
                     str(files[0].parent).replace(f"-s{good[0].seed}", "-s*"))  # fmt: skip


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError):
        return f"{reason(error)}; once that is mended, the same command goes on"
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError | InstantiationException) else f"{type(error).__name__}: {text}"
