"""From a trained run, or a backbone as it is, to the record of its score on one benchmark."""

import functools
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from omegaconf import DictConfig, OmegaConf

from melora_bench.adapters.files import counts
from melora_bench.external.fields import build
from melora_bench.instructeval.base import Benchmark, Questions
from melora_bench.instructeval.config import ScoreConfig
from melora_bench.instructeval.evaluation import Asking, evaluate
from melora_bench.instructeval.harness import check_harness, harness_scores
from melora_bench.instructeval.models import DTYPES, Scored, models, ready
from melora_bench.instructeval.point import ScorePoint
from melora_bench.instructeval.prompts import write_prompts
from melora_bench.instructeval.record import Circumstances, isolation, record_of
from melora_bench.instructeval.sandbox import runner as sandbox
from melora_bench.models.checks import check_device
from melora_bench.records import provenance, records
from melora_bench.records.inputs import difference, inputs_of_record, of_data, of_model, of_start
from melora_bench.records.records import RunRecord
from melora_bench.training.claims import claimed
from melora_bench.training.inputs import at_hand

log = logging.getLogger(__name__)


def score(cfg: DictConfig, choices: dict) -> list[Path]:
    """Score what `cfg` (configs/instructeval.yaml) names; returns the records, those that were there before included,
    and those that another process is at work on left out.

    Raises ValueError for values that cannot be, data or runs that are not there, what `evaluate` refuses, and a device
    without memory enough.
    """
    config = ScoreConfig.of(cast(dict, OmegaConf.to_container(cfg, resolve=True)))
    check_device(config.precision or "no")
    benchmark, source = build(config.benchmark, "benchmark"), build(config.data, "data")
    benchmark.check_numbers()
    # Not read where all is recorded.
    read = functools.cache(lambda: benchmark.read(source.benchmark_folder()))
    try:
        if config.prompts:
            _write_prompts(config, Path(config.prompts), benchmark, read())
            return []
        if config.protocol == "lm_eval":
            _cross_check(config, choices, benchmark)
            return []
        if benchmark.executes and not _passes(config, ""):
            raise ValueError(f"isolation={config.isolation} fails even an empty program here: every score would be 0")
        points = (ScorePoint.of(config, choices, benchmark, scored) for scored in models(config, choices))
        return [path for point in points if (path := _recorded(point, read))]
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"the device is out of memory at batch_size={config.batch_size}: lower it, or the precision if the "
            "model alone does not fit; finished subjects are kept"
        ) from error


def _write_prompts(config: ScoreConfig, path: Path, benchmark: Benchmark, loaded: Questions) -> None:
    """The exact prompts, by the backbone's tokenizer where that can be had."""
    try:
        tokenizer = build(config.backbone, "backbone").tokenizer(alone=True)
    except ValueError as error:
        log.warning("%s", error)
        tokenizer = None
    count = write_prompts(benchmark, loaded, path, limit=config.limit, tokenizer=tokenizer)
    log.info("wrote %d prompts of %s to %s", count, benchmark.label, path)


def _cross_check(config: ScoreConfig, choices: dict, benchmark: Benchmark) -> None:
    """The harness's own scores, printed alone."""
    check_harness(benchmark.name)
    for scored in models(config, choices):
        with ready(scored) as (model, backbone, _):
            result = harness_scores(
                model,
                backbone.tokenizer(),
                benchmark.name,
                batch_size=config.batch_size,
                limit_per_task=config.limit,
                autocast=DTYPES.get(scored.precision),
            )
        name = f"{scored.choices['method']} s{scored.seed}"
        log.info("%s  %s  %s", name, result["engine"], result["results"])


def _recorded(point: ScorePoint, read: Callable[[], Questions]) -> Path | None:
    """The record of one score, made unless it is there; None while another process makes it.
    `read` reads the questions."""
    label, path = point.benchmark.label, point.record
    with claimed(point.lock) as free:
        if path.exists():
            _check_inputs(path, read, point.scored)
            log.info("skip  %s  %s is recorded: %s", label, point.name, path)
        elif free:
            record = _made(point, read())
            record.save(point.config.results_dir)
            _say(record, point)
        else:
            log.info("busy  %s  another process scores %s: left to it, or to a later start", label, point.name)
            return None
    return path


def _made(point: ScorePoint, loaded: Questions) -> RunRecord:
    """Ask, score, and say all that is to be said of it."""
    config, scored, started, clock = point.config, point.scored, provenance.now(), time.perf_counter()
    git = provenance.git_state()
    with ready(scored) as (model, backbone, accelerator):
        origin, params = backbone.origin(), counts(model)
        who = {"config_hash": point.hash, **of_model(origin), "adapter": scored.init_from, **isolation(point)}
        asking = Asking(
            folder=point.folder,
            identity=who,
            limit=config.limit,
            batch_size=config.batch_size,
            seed=config.seed,
            execute=functools.partial(_passes, config),
        )
        evaluation = evaluate(point.benchmark, loaded, model, backbone.tokenizer(), asking)
    made = Circumstances(
        questions=loaded.origin,
        model=origin,
        params=params,
        git=git,
        env=provenance.environment(accelerator, {"precision": scored.precision}),
        started=started,
        wall_seconds=time.perf_counter() - clock,
    )
    return record_of(point, evaluation, made)


def _say(record: RunRecord, point: ScorePoint) -> None:
    """A line with the scores, and one if passes need a look."""
    [entry], test = record.epochs, record.data["test"]
    scores = " ".join(f"{key} {100 * value:.2f}" for key, value in entry["metrics"].items())
    measured = f"{scores}  of {test['rows']} questions  {record.wall_seconds:.0f} s"
    log.info("done  %s  %s  %s  %s", test["label"], point.name, measured, point.record)
    if count := entry["report"].get("tampering"):
        what = "override comparison or reach into the interpreter or the tests: read them, under `tampering` in"
        log.warning("%d of the passes %s %s", count, what, point.folder)


def _check_inputs(path: Path, read: Callable[[], Questions], scored: Scored) -> None:
    """Raises ValueError for a record of other questions, weights or adapters than those at hand,
    which its hash does not see."""
    here = at_hand("questions", lambda: of_data({"test": [read().origin["sha256"]]}))
    here |= at_hand("weights", lambda: of_model(scored.origin()) | of_start(scored.init_from))
    if differing := difference(inputs_of_record(records.load(path)), here):
        raise ValueError(
            f"{path} is the score of other inputs than the questions, weights and adapters at hand ({differing}): "
            "give another results_dir, or delete that record to score again"
        )


def _passes(config: ScoreConfig, program: str) -> bool:
    """Whether a program that a model wrote ends well."""
    return sandbox.run(program, allow_code_execution=config.allow_code_execution, isolation=config.isolation).passed
