"""One JSON file per finished run and seed: written once, never edited, refused when anything about it is off."""

import dataclasses
import datetime
import functools
import gc
import json
import logging
import platform
import subprocess
import textwrap
from dataclasses import dataclass
from pathlib import Path

from melora_bench.files import sha256_json, write_text

log = logging.getLogger(__name__)
SCHEMA = 1
GIT_SECONDS = 60  # what a slow file system may take; a git that hangs holds up no run
ROOT = Path(__file__).resolve().parent.parent
# What a run's identity leaves out: seeds, the place of files, what does not change numbers, and what `method` repeats.
UNLESS_SET = {"max_steps", "eval_steps", "warmup_steps"}  # later keys: while null, older runs are the same runs
NOT_IDENTITY = {"seeds", "experiment", "table", "per_method", "_target_"}
NOT_IDENTITY |= {"results_dir", "output_dir", "tracker", "shard", "compile"}
PATHS = {("data", "root"), ("backbone", "path")}


def identity(config: dict, *trail: str) -> dict:
    """The resolved config without what is not part of a run's identity; records store it and `config_hash` hashes it."""
    left_out = NOT_IDENTITY | {key for key in UNLESS_SET if config.get(key) is None}
    kept = {key: value for key, value in config.items() if key not in left_out and (*trail, key) not in PATHS}
    return {key: identity(value, *trail, key) if isinstance(value, dict) else value for key, value in kept.items()}


def config_hash(identity: dict) -> str:
    """sha256 of the identity's canonical JSON; 2 and 2.0 are one value, so that a config and its JSON copy agree."""

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return int(value) if isinstance(value, float) and value.is_integer() else value

    return sha256_json(plain(identity))


@dataclass(kw_only=True)
class RunRecord:
    """What one seed of one run did. `null` means not measured; best and last epoch are derived from `epochs`."""

    schema: int = SCHEMA
    run_id: str  # <experiment>/<task>/<method>-<hash>-s<seed>: also the file's place below <results_dir>/runs
    config_hash: str
    seed: int
    packed_with: list[int]  # the other seeds trained side by side with this one
    choices: dict  # the config groups' options: method, task, backbone, data, recipe
    versions: dict  # of the method and the task
    config: dict  # the full resolved config, taken before training, without paths and seeds
    git: dict  # commit, dirty
    env: dict  # python, torch, ..., device, processes, precision
    model: dict  # name, repo, commit, sha256
    data: dict  # {split: rows, sha256 and origin; null for a split that was missing}
    init_from: dict | None  # source and sha256 of the adapter that training started from
    params: dict  # trainable numbers of one seed: total, adapter, head
    metric: str  # the metric that selects
    epochs: list[dict]  # epoch, step, train_loss, penalty, lr, metrics, halves, train_seconds, eval_seconds, report
    rows_per_second: (
        float | None
    )  # this seed's training rows (or a score's questions) over their time; packed seeds share the clock
    tokens_per_second: float | None  # the same of this seed's tokens, padding not counted
    peak_memory_bytes: int | None  # of the GPU, for the whole packed run
    wall_seconds: float
    resumed_at: list[int]  # epochs after which the run was interrupted and resumed; of a score, questions
    started: str
    finished: str
    digest: str = ""  # sha256 of all of the above: a record edited by hand is refused

    def sealed(self) -> "RunRecord":
        as_read = json.loads(json.dumps(dataclasses.asdict(self)))  # keys are text there, and sort as text
        return dataclasses.replace(self, digest=_digest(as_read))

    def path(self, results_dir: str | Path) -> Path:
        return Path(results_dir) / "runs" / f"{self.run_id}.json"

    def save(self, results_dir: str | Path) -> Path:
        """Write the record; one line per key and per epoch, so that diffs read well."""
        lines = []
        for key, value in dataclasses.asdict(self.sealed()).items():
            if key == "epochs":
                text = "[\n    " + ",\n    ".join(json.dumps(entry, ensure_ascii=False) for entry in value) + "\n  ]"
            else:
                text = json.dumps(value, ensure_ascii=False)
            lines.append(f"  {json.dumps(key)}: {text}")
        return write_text(self.path(results_dir), "{\n" + ",\n".join(lines) + "\n}\n")


KEYS = {item.name for item in dataclasses.fields(RunRecord)}


def load(path: Path) -> RunRecord:
    """Read one record. Raises ValueError naming the file for broken JSON, another schema, an unknown or missing key,
    contents that do not agree with the record's own hashes, and a file name that is not its own."""
    remedy = "restore it from version control, or delete it and run that point again"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); {remedy}") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path} has schema {found!r}, this version reads schema {SCHEMA}; {remedy}")
    if content.keys() != KEYS:
        odd = sorted(content.keys() ^ KEYS)
        raise ValueError(f"{path} has an unknown key or lacks one: {', '.join(odd)}; {remedy}")
    if content["digest"] != _digest(content) or content["config_hash"] != _hash_of(json.dumps(content["config"])):
        raise ValueError(f"{path} was edited: its contents do not match its own hashes; {remedy}")
    if content["run_id"].split("/")[1:] != [path.parent.name, path.stem]:
        raise ValueError(f"{path} is the record of {content['run_id']}: it was renamed or copied; {remedy}")
    return RunRecord(**content)


def load_all(results_dir: str | Path, experiment: str) -> list[RunRecord]:
    """Every record of one experiment. Raises ValueError for the first bad file."""
    paths = sorted((Path(results_dir) / "runs" / experiment).glob("*/*.json"))
    collecting = gc.isenabled()
    gc.disable()  # records hold no cycles, and looking for some again and again takes half of the time of many
    try:
        return [load(path) for path in paths]
    finally:
        gc.freeze()  # nor are they looked through later
        if collecting:
            gc.enable()


def best_epoch(record: RunRecord) -> dict:
    """The first evaluation with the best selection metric."""
    return best(record.epochs, record.metric)


def best(epochs: list[dict], metric: str) -> dict:
    """The first of the entries with the highest `metric`, or the lowest loss."""
    return (min if metric == "loss" else max)(epochs, key=lambda entry: entry["metrics"][metric])


@functools.cache
def git_state() -> dict:
    """The commit, and whether code or configs differ from it; both null, with one warning, when git does not say."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        done = subprocess.run(command, capture_output=True, check=True, timeout=GIT_SECONDS, stdin=subprocess.DEVNULL)
        return done.stdout.decode(errors="replace").strip()

    watched = ("melora_bench", "configs", "scripts", "pyproject.toml", "requirements.lock")
    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--", *watched))}
    except subprocess.CalledProcessError as error:
        reason = " ".join(error.stderr.decode(errors="replace").split())
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    log.warning("records will not say which commit made them: %s", textwrap.shorten(reason, 300))
    return {"commit": None, "dirty": None}


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def device_name(cuda: bool) -> str:
    import torch

    return torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def environment(accelerator, config: dict) -> dict:
    """Versions, hardware and settings that numbers and timings depend on."""
    import accelerate
    import torch
    import transformers

    cuda = accelerator.device.type == "cuda"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "device": device_name(cuda),
        "processes": accelerator.num_processes,
        **{key: config[key] for key in ("precision", "shard", "compile") if key in config},
    }


@functools.cache  # the seeds of a point have one config
def _hash_of(config: str) -> str:
    return config_hash(json.loads(config))


def _digest(content: dict) -> str:
    return sha256_json({key: value for key, value in content.items() if key != "digest"})
