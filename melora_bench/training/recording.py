"""What a packed run leaves behind: each seed's adapters after every evaluation, its record,
and one line that sums it up."""

import logging
from pathlib import Path
from typing import Any

import torch

from melora_bench.adapters.files import save_adapter
from melora_bench.records import provenance, records
from melora_bench.records.identity import config_hash
from melora_bench.training.build import Parts
from melora_bench.training.points import Point

log = logging.getLogger(__name__)


def keep_adapters(point: Point, parts: Parts) -> None:
    """last.safetensors of every seed, and best.safetensors of the seeds that have just reached their best."""
    trainer = parts.trainer
    for k, (seed, history) in enumerate(zip(trainer.seeds, trainer.history, strict=True)):
        if not history or history[-1]["step"] != trainer.step:
            continue
        told = {**_account(point, parts), "run_id": point.run_id(seed), "seed": seed, **history[-1]}
        told["total_steps"] = trainer.schedule.total
        folder = point.output(seed)
        save_adapter(folder / "last.safetensors", trainer.model, k, told)
        if records.best_entry(history, parts.task.metric) is history[-1]:
            save_adapter(folder / "best.safetensors", trainer.model, k, told)


def write_records(
    point: Point, parts: Parts, *, env: dict[str, Any], seconds: float, resumed_at: list[int | float]
) -> list[Path]:
    """The records of the seeds that reached the end and have none yet; returns their files.

    env: who trained, and who trained the parts before, if others did. seconds: of the whole run, by the wall clock.
    resumed_at: the epochs after which it was interrupted.
    """
    trainer = parts.trainer
    cuda = parts.accelerator.device.type == "cuda"
    shared = {
        **_account(point, parts),
        "versions": {"method": parts.method.version, "task": parts.task.version},
        "env": env,
        "data": parts.data,
        "params": parts.params,
        "metric": parts.task.metric,
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        "wall_seconds": round(seconds, 3),
        "resumed_at": resumed_at,
        "started": parts.started,
        "finished": provenance.now(),
    }
    paths = []
    for k, seed in enumerate(trainer.seeds):
        if trainer.failed[k] is not None or point.record(seed):
            continue
        history, split = trainer.history[k], parts.task.train
        epochs, train_seconds = history[-1]["epoch"], sum(entry["train_seconds"] for entry in history)
        record = records.RunRecord(
            run_id=point.run_id(seed),
            seed=seed,
            packed_with=[other for other in trainer.seeds if other != seed],
            init_from=parts.starts[k],
            epochs=history,
            rows_per_second=round(epochs * len(split.labels) / train_seconds, 2),
            tokens_per_second=round(epochs * len(split.ids) / train_seconds, 1),
            **shared,
        )
        paths.append(record.save(point.config.results_dir))
    return paths


def summarise(point: Point, parts: Parts, paths: list[Path], *, seconds: float) -> None:
    """Log what became of a run that has just written the records `paths`, `seconds` after it began."""
    seeds = parts.trainer.seeds
    recorded = {seed: path for seed in seeds if (path := point.record(seed))}
    good = [records.load(path) for path in recorded.values()]
    if others := [seed for seed, path in recorded.items() if path not in paths]:
        log.info("skip  %s  seeds %s had been recorded before this run ended", point.label, others)
    scores = " ".join(f"{records.best_epoch(record)['metrics'][record.metric]:.4f}" for record in good) or "none"
    place = str(recorded[good[0].seed]).replace(f"-s{good[0].seed}.json", "-s*.json") if good else "no record"
    log.info(
        "done  %s  %d of %d seeds  best %s %s  %s adapter parameters  %.0f rows/s  %.0f s  %s",
        point.label,
        len(good),
        len(seeds),
        parts.task.metric,
        scores,
        f"{parts.params['adapter']:,}",
        sum(record.rows_per_second or 0 for record in good),
        seconds,
        place,
    )
    files = [point.output(record.seed) / f"{kind}.safetensors" for record in good for kind in ("best", "last")]
    if files:
        size = sum(file.stat().st_size for file in files) / 1e6
        folder = str(files[0].parent).replace(f"-s{good[0].seed}", "-s*")
        log.info("adapters  best and last epoch, %d files, %.1f MB: %s", len(files), size, folder)


def _account(point: Point, parts: Parts) -> dict[str, Any]:
    """What both the records and the adapter files say of the run."""
    identity = point.identity
    return {
        "choices": point.choices,
        "config": identity,
        "config_hash": config_hash(identity),
        "git": parts.code["git"],
        "model": parts.origin,
    }
