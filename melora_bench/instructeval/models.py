"""What is scored: the adapters that `run=` names, one after another, or the backbone as it is."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from accelerate import Accelerator
from transformers import PreTrainedModel

from melora_bench.adapters.files import account
from melora_bench.adapters.trained import find, load
from melora_bench.external.fields import build
from melora_bench.files import sha256_file
from melora_bench.grids.tables import RECORDED_AS
from melora_bench.instructeval.config import ScoreConfig
from melora_bench.models.base import Backbone
from melora_bench.models.checks import check_device, check_dtype
from melora_bench.records.identity import identity

log = logging.getLogger(__name__)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
UNTRAINED_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A model to score, and what its record says of it."""

    # The model and its backbone.
    load: Callable[[], tuple[PreTrainedModel, Backbone]]
    # What is known of the frozen weights: `Backbone.origin`.
    origin: Callable[[], dict]
    experiment: str
    seed: int
    choices: dict
    # The identity of its training; of a backbone as it is, the backbone alone.
    config: dict
    init_from: dict | None
    # Epoch and step of the adapters.
    at: dict
    # no | bf16 | fp16: what is asked for, else what it was trained in, else no.
    precision: str


def models(config: ScoreConfig, choices: dict) -> Iterator[Scored]:
    """The models that `run` names; without `run` the backbone as it is. Raises ValueError when there is none."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if config.run is None:
        yield _untrained(config, choices)
        return
    files = find(config.run, config.which, config.output_dir)
    finished = [file for file in files if _is_finished(file)]
    for file in finished:
        yield _trained(config, file)
    if not finished:
        raise ValueError(f"run={config.run} has no adapters that are trained to their end: train on, then score")


@contextlib.contextmanager
def ready(scored: Scored) -> Iterator[tuple[PreTrainedModel, Backbone, Accelerator]]:
    """The model on the device, under its precision, and its backbone."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    model, backbone = scored.load()
    check_dtype(model, scored.precision)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    reduced = DTYPES.get(scored.precision)
    with torch.autocast(accelerator.device.type, reduced) if reduced else contextlib.nullcontext():
        yield model.to(accelerator.device), backbone, accelerator


def precision_of(config: ScoreConfig, trained_in: str | None) -> str:
    """The precision that a model is scored in. Raises ValueError for one that this machine does not have."""
    precision = config.precision or trained_in or "no"
    check_device(precision)
    return precision


def _untrained(config: ScoreConfig, choices: dict) -> Scored:
    def untrained() -> tuple[PreTrainedModel, Backbone]:
        backbone = build(config.backbone, "backbone")
        return backbone.model(0).requires_grad_(False), backbone

    return Scored(
        load=untrained,
        origin=lambda: build(config.backbone, "backbone").origin(),
        experiment="adhoc",
        seed=0,
        choices={"method": RECORDED_AS, "backbone": choices["backbone"], "recipe": None},
        config=identity({"backbone": config.backbone}) | {"method": {"version": UNTRAINED_VERSION}},
        init_from=None,
        at={"epoch": 0, "step": 0},
        precision=precision_of(config, None),
    )


def _trained(config: ScoreConfig, file: Path) -> Scored:
    """file: adapters that a run wrote."""
    saved = account(file)

    def adapted() -> tuple[PreTrainedModel, Backbone]:
        trained = load(file, config.backbone["path"], as_trained=True)
        return trained.model, trained.backbone

    return Scored(
        load=adapted,
        origin=lambda: saved["model"],
        experiment=saved["run_id"].split("/")[0],
        seed=saved["seed"],
        choices=saved["choices"],
        config=saved["config"],
        init_from={"source": saved["run_id"], "run_id": saved["run_id"], "sha256": sha256_file(file)},
        at={"epoch": saved["epoch"], "step": saved["step"]},
        precision=precision_of(config, saved["config"].get("precision")),
    )


def _is_finished(file: Path) -> bool:
    """Whether the run beside whose last adapters `file` lies came to its end; of a file alone, nothing is known."""
    last = file.with_name("last.safetensors")
    saved = account(last) if last.exists() else {"step": 0, "total_steps": 0}
    if saved["step"] < saved["total_steps"]:
        log.warning("pass  %s is trained for %d of %d steps", saved["run_id"], saved["step"], saved["total_steps"])
    return saved["step"] >= saved["total_steps"]
