"""From a point to what its training is made of:
accelerator, backbone, task, method and trainer, ready for the first step."""

import gc
import time
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from omegaconf import DictConfig
from transformers import PreTrainedModel

from melora_bench.adapters.files import counts
from melora_bench.external.fields import build as make
from melora_bench.methods.base import Method
from melora_bench.methods.dropout import replace_dropouts
from melora_bench.models.base import Backbone
from melora_bench.models.checks import check_device, check_dtype
from melora_bench.models.fused import refuse_whole
from melora_bench.models.streams import check_layout
from melora_bench.records import provenance
from melora_bench.tasks.base import Task
from melora_bench.tasks.batches import TrainBatches
from melora_bench.training.configs import RunConfig
from melora_bench.training.points import Point
from melora_bench.training.probe import probe
from melora_bench.training.schedule import Schedule
from melora_bench.training.sharding import refuse_launch, shard_backbone
from melora_bench.training.starts import load_start
from melora_bench.training.tracking import check_tracker
from melora_bench.training.trainer import Trainer

LIMITS = ("max_length", "max_train_rows", "max_eval_rows")


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a packed run is made of, and what its records say of how it began."""

    accelerator: Accelerator
    backbone: Backbone
    task: Task
    method: Method
    trainer: Trainer
    data: dict[str, dict | None]  # what a record says of the rows, by split
    starts: list[dict | None]  # by replica, what a record says of the adapters that training starts from
    params: dict[str, int]  # how many numbers one seed trains
    compiled: bool
    origin: dict[str, Any]  # of the frozen weights, as read before training: the files may have changed by its end
    code: dict[str, Any]  # the commit and the sources' sha256, likewise
    started: str
    clock: float  # time.perf_counter() at that time


def build(point: Point, seeds: list[int]) -> Parts:
    """Read the data and the weights of a point, adapt the backbone for these seeds, and make the trainer.

    Raises ValueError for values that cannot be, and for what this machine, the data or the weights do not allow.
    """
    config, started, clock = point.config, provenance.now(), time.perf_counter()
    _forget_earlier_runs()
    check_tracker(config.tracker)
    refuse_launch(config)
    check_device(config.precision)
    accelerator = _accelerator(config)
    method, backbone = make(config.method, "method"), make(config.backbone, "backbone")
    task, backbone, data = load_task(config, backbone)
    origin, code = backbone.origin(), {"git": provenance.git_state(), "code": provenance.code_sha256()}
    model = _model(config, backbone, task)
    batches = _batches(config, seeds, task, backbone, model, accelerator)
    schedule = Schedule.of(config, len(task.train.labels))
    method.attach(model, backbone.head, seeds, schedule.total)
    refuse_whole(model, method.layers)
    starts = [load_start(point, seed, k, model, method, backbone.head) for k, seed in enumerate(seeds)]
    params = counts(model)
    if config.shard:
        shard_backbone(model, accelerator)
    keys = ("lr", "head_lr_scale", "weight_decay", "no_decay", "max_grad_norm", "eval_batch_size")
    trainer = Trainer(
        accelerator=accelerator,
        model=model,
        method=method,
        task=task,
        batches=batches,
        schedule=schedule,
        **{key: getattr(config, key) for key in keys},
    )
    probe(trainer, backbone.name)
    return Parts(
        accelerator=accelerator,
        backbone=backbone,
        task=task,
        method=method,
        trainer=trainer,
        data=data,
        starts=starts,
        params=params,
        compiled=config.compile and trainer.compile(),
        origin=origin,
        code=code,
        started=started,
        clock=clock,
    )


def load_task(config: RunConfig | DictConfig, backbone: Backbone) -> tuple[Task, Backbone, dict[str, dict | None]]:
    """The task of a config with its rows read and tokenised, the backbone as the task needs it, and what the record
    says of the rows. Raises ValueError."""
    task, source = make(config.task, "task"), make(config.data, "data")
    backbone = backbone.for_task(task.num_labels)
    return task, backbone, task.load(source, backbone.tokenizer(), **{key: getattr(config, key) for key in LIMITS})


def _forget_earlier_runs() -> None:
    """Free what a run before this one, whose error may have kept its model alive, left on the device and in
    accelerate."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    AcceleratorState._reset_state(reset_partial_state=False)  # an earlier run may have had another precision
    GradientState._reset_state()


def _accelerator(config: RunConfig) -> Accelerator:
    return Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision=config.precision,
        gradient_accumulation_steps=config.accumulation,
    )


def _model(config: RunConfig, backbone: Backbone, task: Task) -> PreTrainedModel:
    """The backbone's model. Raises ValueError for weights that the precision does not go with,
    and for texts too long."""
    model = backbone.model(task.num_labels)
    check_dtype(model, config.precision)
    replace_dropouts(model)
    longest = max(int(split.lengths.max()) for split in task.splits.values())
    most = backbone.max_tokens(model)
    if longest > most:
        raise ValueError(
            f"max_length={config.max_length} lets texts of {longest} tokens through, "
            f"backbone {backbone.name} reads {most}: lower it to that"
        )
    return model


def _batches(
    config: RunConfig,
    seeds: list[int],
    task: Task,
    backbone: Backbone,
    model: PreTrainedModel,
    accelerator: Accelerator,
) -> TrainBatches:
    """The batches of this process, in the layout asked for. Raises ValueError for one that the model cannot take."""
    streams = check_layout(config.layout, model, accelerator.device) and not config.compile
    return TrainBatches(
        split=task.train,
        seeds=seeds,
        batch_size=config.batch_size,
        bucket=config.bucket,
        accumulation=config.accumulation,
        first_position=backbone.first_position(model) if streams else None,
        processes=accelerator.num_processes,
        process=accelerator.process_index,
    )
