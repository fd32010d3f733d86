"""Where training starts when it does not start afresh: at an earlier run's adapters,
or at a PEFT LoRA adapter's update."""

import logging
from pathlib import Path

from torch import nn

from melora_bench.adapters.files import account, load_tensors, stored_account
from melora_bench.adapters.peft_format import CONFIG as PEFT_CONFIG
from melora_bench.adapters.peft_format import WEIGHTS as PEFT_WEIGHTS
from melora_bench.adapters.peft_format import load_peft
from melora_bench.files import sha256_file, sha256_once
from melora_bench.methods.base import Method
from melora_bench.training.points import Point

log = logging.getLogger(__name__)


def start_file(point: Point, seed: int) -> Path | None:
    """The adapter file that `init_from` names for one seed; None without `init_from`.

    Raises ValueError for a file that is not there, and for a task on which this experiment does not have
    exactly one run of the same method, backbone and precision.
    """
    source = point.config.init_from
    if source is None:
        return None
    folder = Path(source) if Path(source).is_dir() else _earlier_run(point, source, seed)
    path = folder / (PEFT_WEIGHTS if (folder / PEFT_CONFIG).is_file() else "last.safetensors")
    if path.is_file():
        return path
    if path.name == PEFT_WEIGHTS:
        raise ValueError(f"init_from: {folder} holds no {PEFT_WEIGHTS}: save it with peft's save_pretrained")
    raise ValueError(
        f"init_from: {path} does not exist; name a finished run as <experiment>/<task>/<method>-<hash> "
        "with an adapter of each seed, its folder, or a PEFT LoRA adapter's"
    )


def fingerprint(path: Path) -> dict:
    """The sha256 of an adapter file and, of PEFT's, that of the config which says how to read it (rank, alpha, ..)."""
    config = {"config_sha256": sha256_file(path.with_name(PEFT_CONFIG))} if path.name == PEFT_WEIGHTS else {}
    return {"sha256": sha256_once(path), **config}


def load_start(
    point: Point, seed: int, replica: int, model: nn.Module, method: Method, head: str | list[str]
) -> dict | None:
    """Put one seed's start into its replica. The head stays fresh, as its classes may differ.

    Returns {"source", "run_id"} and its `fingerprint` for the record, None without `init_from`. Raises ValueError as
    `start_file` does, and for adapters that do not fit.
    """
    path = start_file(point, seed)
    if path is None:
        return None
    run_id = None
    try:
        if path.name == PEFT_WEIGHTS:
            load_peft(method.layers, head, replica, path.parent)
        else:
            run_id = _load_adapter(model, replica, path)
    except ValueError as error:
        raise ValueError(f"init_from: {error}") from error
    return {"source": point.config.init_from, "run_id": run_id, **fingerprint(path)}


def _load_adapter(model: nn.Module, replica: int, path: Path) -> str | None:
    """Load an adapter file into one replica; returns the run that the file names, None for a file from elsewhere."""
    values = account(path) if stored_account(path) else {}
    if values and values["step"] < values["total_steps"]:
        raise ValueError(f"{path} is of an unfinished run (step {values['step']} of {values['total_steps']})")
    load_tensors(model, replica, path, head=False)
    return values.get("run_id")


def _earlier_run(point: Point, source: str, seed: int) -> Path:
    """The outputs of <experiment>/<task>/<method>-<hash>, or of the run of a task alike in method, backbone and
    precision: this experiment's, or else that of the table's own. Raises ValueError unless there is exactly one."""
    runs = Path(point.config.output_dir, "runs")
    if "/" in source:
        return runs / f"{source}-s{seed}"
    experiments = [name for name in dict.fromkeys((point.config.experiment, point.table)) if name]
    places = [f"{experiment}/{source}/{point.choices['method']}-*-s{seed}" for experiment in experiments]
    alike = next(filter(None, (_alike(point, runs, place) for place in places)), [])
    if len(alike) != 1:
        raise ValueError(
            f"init_from={source}: {len(alike)} runs {' or '.join(places)} of this method, backbone and precision "
            f"are in {runs}, not one: train task={source} first, or name a run or a folder"
        )
    return alike[0]


def _alike(point: Point, runs: Path, place: str) -> list[Path]:
    """The folders of `place` whose run has the point's method, backbone and precision;
    one that cannot be read is passed."""
    folders, identity = [], point.identity
    for path in sorted(runs.glob(f"{place}/last.safetensors")):
        try:
            config = account(path)["config"]
        except ValueError as error:
            log.warning("pass  %s", error)
            continue
        if all(config.get(key) == identity[key] for key in ("method", "backbone", "precision")):
            folders.append(path.parent)
    return folders
