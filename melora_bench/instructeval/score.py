"""From a trained run, or a backbone as it is, to the record of its score on one benchmark."""

import contextlib
import functools
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from accelerate import Accelerator
from omegaconf import DictConfig, OmegaConf

from melora_bench.adapters import export
from melora_bench.external.shapes import leaves
from melora_bench.files import CONFIGS, sha256_file
from melora_bench.grids.grid import trial_name
from melora_bench.instructeval.base import Benchmark, Questions
from melora_bench.instructeval.harness import check_harness, harness_scores
from melora_bench.instructeval.sandbox import runner as sandbox
from melora_bench.instructeval.scoring import evaluate, write_prompts
from melora_bench.models.backbones import Backbone, check_device, check_dtype
from melora_bench.records import provenance, records
from melora_bench.records.identity import check_experiment, config_hash, identity
from melora_bench.records.records import RunRecord
from melora_bench.training import checkpoints
from melora_bench.training.claims import claimed
from melora_bench.training.configs import build
from melora_bench.training.inputs import at_hand, difference, inputs_of_record, of_data, of_model, of_start

log = logging.getLogger(__name__)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(kw_only=True)
class Scored:
    """A model to score, and what its record says of it."""

    build: Callable[[], tuple[torch.nn.Module, Backbone]]
    origin: Callable[[], dict]  # what is known of the frozen weights: `Backbone.origin`
    experiment: str
    seed: int
    choices: dict
    config: dict  # the identity of its training; of a backbone as it is, the backbone alone
    init_from: dict | None
    at: dict  # epoch and step of the adapters


def score(cfg: DictConfig, choices: dict) -> list[Path]:
    """Score what `cfg` (configs/instructeval.yaml) names; returns the records, those that were there before included, and
    those that another process is at work on left out.

    Raises ValueError for values that cannot be, data or runs that are not there, what `evaluate` refuses, and a device
    without memory enough.
    """
    config = OmegaConf.to_container(cfg, resolve=True)
    try:
        return _score(config, choices)
    except torch.OutOfMemoryError as error:
        raise ValueError(f"the device is out of memory at batch_size={config['batch_size']}: lower it, or the precision if the "
                         "model alone does not fit; finished subjects are kept") from error  # fmt: skip


def _score(config: dict, choices: dict) -> list[Path]:
    if config["experiment"] is not None:
        check_experiment(config["experiment"])
    if config["precision"] not in (None, "no", *DTYPES):
        raise ValueError(f"precision={config['precision']!r} is unknown: use no, bf16 or fp16")
    check_device(config["precision"])
    if config["protocol"] not in ("instructeval", "lm_eval"):
        raise ValueError(f"protocol={config['protocol']!r} is unknown: use instructeval or lm_eval")
    benchmark, source = (build(config[group], group) for group in ("task", "data"))
    if not isinstance(benchmark, Benchmark):
        raise ValueError(f"task={choices['task']} is trained on, not scored: use task=mmlu, bbh, drop or humaneval")
    _check(config)
    if config["prompts"]:
        if config["run"] is not None:
            raise ValueError(
                "prompts= counts tokens with the tokenizer of backbone=: name the run's backbone instead of run="
            )
        loaded = benchmark.read(source.benchmark_root())
        try:
            tokenizer = build(config["backbone"], "backbone").tokenizer(alone=True)
        except ValueError as error:
            log.warning("%s", error)
            tokenizer = None
        count = write_prompts(benchmark, loaded, Path(config["prompts"]), tokenizer=tokenizer, limit=config["limit"])
        log.info("wrote %d prompts of %s to %s", count, benchmark.label, config["prompts"])
        return []
    if config["protocol"] == "lm_eval":
        check_harness(benchmark.name)
        for scored in _models(config, choices):
            _by_harness(_asked(config, scored), scored, benchmark.name)
        return []
    if benchmark.executes and not _passes(config, ""):  # refuse before anything is loaded
        raise ValueError(f"isolation={config['isolation']} fails even an empty program here: every score would be 0")
    read = functools.cache(lambda: benchmark.read(source.benchmark_root()))  # unless all is recorded
    paths = [_one(_asked(config, scored), choices, scored, benchmark, read) for scored in _models(config, choices)]
    return [path for path in paths if path]


def _check(config: dict) -> None:
    """Raises ValueError for numbers that cannot be."""
    least = {"batch_size": 1, "seed": 0, "task.shots": 0, "task.max_new_tokens": 1, "task.context": 1}
    given = {key: OmegaConf.select(OmegaConf.create(config), key) for key in (*least, "limit", "task.temperature")}
    for key, low in least.items():
        if type(given[key]) is not int or given[key] < low:
            raise ValueError(f"{key}={given[key]} must be a whole number from {low} on")
    if type(given["limit"]) not in (int, type(None)):
        raise ValueError(f"limit={given['limit']} must be a whole number, or null for all questions")
    if type(given["task.temperature"]) not in (int, float) or not 0 <= given["task.temperature"] < math.inf:
        raise ValueError(f"task.temperature={given['task.temperature']} must be a number from 0 on")


def _passes(config: dict, program: str) -> bool:
    keys = ("allow_code_execution", "isolation")
    return sandbox.run(program, **{key: config[key] for key in keys}).passed


@contextlib.contextmanager
def _ready(scored: Scored, config: dict) -> Iterator[tuple[torch.nn.Module, Backbone, Accelerator]]:
    """The model on the device, under the precision asked for."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    model, backbone = scored.build()
    check_dtype(model, config["precision"])
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    reduced = DTYPES.get(config["precision"])
    with torch.autocast(accelerator.device.type, reduced) if reduced else contextlib.nullcontext():
        yield model.to(accelerator.device), backbone, accelerator


def _by_harness(config: dict, scored: Scored, benchmark: str) -> None:
    with _ready(scored, config) as (model, backbone, _):
        found = harness_scores(model, backbone.tokenizer(), benchmark, batch_size=config["batch_size"],
                               limit_per_task=config["limit"], autocast=DTYPES.get(config["precision"]))  # fmt: skip
    log.info("%s s%d  %s  %s", scored.choices["method"], scored.seed, found["engine"], found["results"])


def _one(
    config: dict, choices: dict, scored: Scored, benchmark: Benchmark, read: Callable[[], Questions]
) -> Path | None:
    """The record of one model, written unless it is there; None while another process scores it. `read` reads the questions."""
    # What decides the score: how the model was trained, and how it is asked.
    identity = {**scored.config, "trained_on": scored.config.get("task"), **_how(config)}
    name = f"{scored.choices['method']}-{config_hash(identity)[:10]}-s{scored.seed}"
    run_id = f"{_experiment(config, choices, scored)}/{choices['task']}/{name}"
    path = Path(config["results_dir"], "runs", f"{run_id}.json")
    with claimed(Path(config["output_dir"], "runs", f"{run_id}.lock")) as mine:
        if path.exists():
            _check_inputs(path, read, scored)
            log.info("skip  %s  %s is recorded: %s", benchmark.label, name, path)
        elif mine:
            record = _record(config, choices, scored, benchmark, read(), identity, run_id)
            record.save(config["results_dir"])
            metrics, about = record.epochs[0]["metrics"], record.data["test"]
            log.info("done  %s  %s  %s  of %d questions  %.0f s  %s", about["label"], name,
                     " ".join(f"{key} {100 * value:.2f}" for key, value in metrics.items()),
                     about["rows"], record.wall_seconds, path)  # fmt: skip
            if count := record.epochs[0]["report"].get("tampering"):
                log.warning("%d of the passes override comparison or reach into the interpreter or the tests: read them, under "
                            "`tampering` in %s", count, path.with_suffix(""))  # fmt: skip
        else:
            log.info("busy  %s  another process scores %s: left to it, or to a later start", benchmark.label, name)
            return None
    return path


def _asked(config: dict, scored: Scored) -> dict:
    """The config with the precision that the model is scored in."""
    precision = config["precision"] or scored.config.get("precision", "no")
    check_device(precision)
    return config | {"precision": precision}


def _how(config: dict) -> dict:
    """How a model is asked, as it stands in the identity of its score."""
    task = identity({"task": config["task"]})["task"]
    return {
        "task": {**task, **{key: config[key] for key in ("limit", "seed", "which")}},
        "precision": config["precision"],
    }


def _experiment(config: dict, choices: dict, scored: Scored) -> str:
    """Where the score's record goes. A model that is asked otherwise than configs/ does (a slice, say, or fewer shots) is a
    trial: its score gets an experiment beside the run's, in which it cannot stand in a cell of the run's table."""
    if config["experiment"] is not None:
        return config["experiment"]
    if config["run"] is None:
        return scored.experiment
    folder = CONFIGS
    usual, task = (OmegaConf.to_container(OmegaConf.load(folder / f"{name}.yaml"))
                   for name in ("instructeval", f"task/{choices['task']}"))  # fmt: skip
    usual = dict(leaves(_how(_asked({**usual, "task": task}, scored))))
    changed = {key: value for key, value in leaves(_how(config)) if value != usual.get(key)}
    if not changed:
        return scored.experiment
    short = {f"task.{key}": key for key in ("limit", "seed", "which")}
    changed = {short.get(key, key): value for key, value in changed.items()}
    name = trial_name(scored.experiment, changed)
    _say_trial(" ".join(sorted(f"{key}={value}" for key, value in changed.items())), name)
    return name


@functools.cache  # once, however many models
def _say_trial(how: str, name: str) -> None:
    log.info(
        "trial  %s: records go to experiment=%s, beside those of the run; give experiment=NAME for another", how, name
    )


def _check_inputs(path: Path, read: Callable[[], Questions], scored: Scored) -> None:
    """Raises ValueError for a record of other questions, weights or adapters than those at hand, which its hash does not
    see."""
    here = at_hand("questions", lambda: of_data({"test": [read().origin["sha256"]]}))
    here |= at_hand("weights", lambda: of_model(scored.origin())) | of_start(scored.init_from)
    if differing := difference(inputs_of_record(records.load(path)), here):
        raise ValueError(f"{path} is the score of other inputs than the questions, weights and adapters at hand ({differing}): "
                         "give another results_dir, or delete that record to score again")  # fmt: skip


def _record(config: dict, choices: dict, scored: Scored, benchmark, loaded, identity: dict, run_id: str) -> RunRecord:
    """Ask, score, and say all that is to be said of it."""
    started, clock, digest = provenance.now(), time.perf_counter(), config_hash(identity)
    folder = Path(config["results_dir"], "runs", run_id)
    git, told = provenance.git_state(), {"isolation": config["isolation"]} if benchmark.executes else {}
    with _ready(scored, config) as (model, backbone, accelerator):
        origin, params = backbone.origin(), checkpoints.counts(model, backbone.head)
        found = evaluate(
            benchmark, loaded, model, backbone.tokenizer(), folder,
            identity={"config_hash": digest, **of_model(origin), "adapter": scored.init_from, **told},
            limit=config["limit"], batch_size=config["batch_size"], seed=config["seed"],
            execute=functools.partial(_passes, config),
        )  # fmt: skip
    seconds = time.perf_counter() - clock
    keys = [key for key in ("score", "exact", "ceiling") if found.get(key) is not None]
    reported = [key for key in ("questions", "shots", "subjects", "examples_sha256", "tampering") if key in found]
    entry = {
        **scored.at, "train_loss": None, "penalty": None, "lr": None,
        "metrics": {key: round(found[key] / 100, 6) for key in keys},
        "halves": [{"score": round(value / 100, 6)} for value in found["halves"]],
        "report": {key: found[key] for key in reported} | told,
    }  # fmt: skip
    data = found["data"]
    return RunRecord(
        run_id=run_id,
        config_hash=digest,
        seed=scored.seed,
        packed_with=[],
        choices={**scored.choices, "task": choices["task"], "data": choices["data"]},
        versions={"method": scored.config["method"]["version"], "task": benchmark.version},
        config=identity,
        git=git,
        env=provenance.environment(accelerator, config) | {"batch_size": config["batch_size"]},
        model=origin,
        data={"test": {**data, "rows": found["questions"], "sha256": [data["sha256"]]}},
        init_from=scored.init_from,
        params=params,
        metric="score",
        epochs=[entry],
        rows_per_second=round(found["asked"] / found["seconds"], 3) if found["asked"] else None,
        tokens_per_second=None,
        peak_memory_bytes=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        wall_seconds=round(seconds, 3),
        resumed_at=[found["questions"] - found["asked"]] if found["asked"] < found["questions"] else [],
        started=started,
        finished=provenance.now(),
    )


def _models(config: dict, choices: dict) -> Iterator[Scored]:
    """The models that `run` names, one after another; without `run` the backbone as it is."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if config["run"] is None:
        chosen = {"method": "head", "backbone": choices["backbone"], "recipe": None}
        own = identity({"backbone": config["backbone"]}) | {"method": {"version": 1}}
        yield Scored(
            build=lambda: _untrained(config["backbone"]),
            origin=lambda: build(config["backbone"], "backbone").origin(),
            experiment="adhoc", seed=0, choices=chosen, config=own, init_from=None, at={"epoch": 0, "step": 0},
        )  # fmt: skip
        return
    files = export.find(config["run"], config["which"], config["output_dir"])
    finished = [file for file in files if _is_finished(file)]
    for file in finished:
        about = checkpoints.account(file)
        yield Scored(
            build=lambda file=file: _trained(file, config["backbone"]["path"]),
            origin=lambda about=about: about["model"],
            experiment=about["run_id"].split("/")[0], seed=about["seed"], choices=about["choices"], config=about["config"],
            init_from={"source": about["run_id"], "run_id": about["run_id"], "sha256": sha256_file(file)},
            at={"epoch": about["epoch"], "step": about["step"]},
        )  # fmt: skip

    if not finished:
        raise ValueError(f"run={config['run']} has no adapters that are trained to their end: train on, then score")


def _is_finished(file: Path) -> bool:
    """Whether the run beside whose last adapters `file` lies came to its end; of a file alone, nothing is known."""
    last = file.with_name("last.safetensors")
    about = checkpoints.account(last) if last.exists() else {"step": 0, "total_steps": 0}
    if about["step"] < about["total_steps"]:
        log.warning("pass  %s is trained for %d of %d steps", about["run_id"], about["step"], about["total_steps"])
    return about["step"] >= about["total_steps"]


def _untrained(fields: dict) -> tuple[torch.nn.Module, Backbone]:
    backbone = build(fields, "backbone")
    return backbone.model(0).requires_grad_(False), backbone


def _trained(file: Path, path: str | None) -> tuple[torch.nn.Module, Backbone]:
    trained = export.load(file, path, as_trained=True)
    return trained.model, trained.backbone
