"""One JSON file per finished run and seed: written once, never edited, refused when anything in it is wrong."""

import dataclasses
import functools
import gc
import itertools
import json
import logging
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from melora_bench.external.shapes import CONTROL, misfit, shown, texts
from melora_bench.files import sha256_json, write_text
from melora_bench.records.identity import config_hash
from melora_bench.records.shape import SHAPE

log = logging.getLogger(__name__)
SCHEMA = 1


@dataclass(kw_only=True)
class RunRecord:
    """What one seed of one run did. `null` means not measured; best and last epoch are derived from `epochs`."""

    schema: int = SCHEMA
    # <experiment>/<task>/<method>-<hash>-s<seed>: also the file's place below <results_dir>/runs.
    run_id: str
    config_hash: str
    seed: int
    # The other seeds trained side by side with this one.
    packed_with: list[int]
    # The config groups' options: method, task, backbone, data, recipe.
    choices: dict[str, Any]
    # Of the method and the task.
    versions: dict[str, Any]
    # The full resolved config, taken before training, without paths and seeds.
    config: dict[str, Any]
    # commit, dirty
    git: dict[str, Any]
    # python, torch, ..., device, processes, precision
    env: dict[str, Any]
    # name, repo, commit, sha256 of weights, config_sha256, tokenizer_sha256 (in older records, of weights alone)
    model: dict[str, Any]
    # {split: rows, sha256 and origin; null for a split that was missing}
    data: dict[str, Any]
    # Source and sha256 of the adapter that training started from; of PEFT's, config_sha256.
    init_from: dict[str, Any] | None
    # Trainable numbers of one seed: total, adapter, head.
    params: dict[str, Any]
    # The metric that selects.
    metric: str
    # epoch, step, train_loss, penalty, lr, metrics, halves, train_seconds, eval_seconds, report
    epochs: list[dict[str, Any]]
    # This seed's training rows (or a score's questions) over their time; packed seeds share the clock.
    rows_per_second: float | None
    # The same of this seed's tokens, padding not counted.
    tokens_per_second: float | None
    # Of the GPU, for the whole packed run.
    peak_memory_bytes: int | None
    wall_seconds: float
    # Epochs after which the run was interrupted and resumed; of a score, questions.
    resumed_at: list[int]
    started: str
    finished: str
    # sha256 of all of the above: a record edited by hand is refused.
    digest: str = ""

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
    """Read one record. Raises ValueError, of one line that names the file, for broken JSON, another schema, an unknown
    or missing key, contents that do not agree with the record's own hashes, a file name that is not its own, and a
    value that no run writes: of another type, not finite, a name that is none, control characters in a text."""
    try:
        written = path.read_text(encoding="utf-8")
        content = json.loads(written)
        problem = _problem(content, written, path)
    except (OSError, ValueError, RecursionError) as error:  # hashing raises too, for what is not JSON, such as NaN
        problem = f" is not valid JSON ({error})"
    if problem:
        raise ValueError(f"{path}{problem}; restore it from version control, or delete it and run that point again")
    return RunRecord(**content)


def _problem(content: object, written: str, path: Path) -> str:
    """What is wrong with a record that was read from the JSON `written`; empty: nothing."""
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        schema = content.get("schema") if isinstance(content, dict) else type(content).__name__
        return f" has schema {reprlib.repr(schema)}, this version reads schema {SCHEMA}"
    # JSON escapes control characters, so that most files show at a glance that they have none.
    if ("\\" in written or "\x7f" in written or not written.isascii()) and _has_control_characters(content):
        return " has control characters in a text"
    if content.keys() != KEYS:
        return f" has an unknown key or lacks one: {', '.join(map(shown, sorted(content.keys() ^ KEYS)))}"
    if content["digest"] != _digest(content) or content["config_hash"] != _hash_of(json.dumps(content["config"])):
        return " was edited: its contents do not match its own hashes"
    if what := misfit(content, SHAPE):
        return f" cannot be a record: {what[1:]}"
    metric = content["metric"]
    for entry in content["epochs"]:
        if len(entry["halves"]) != 2 or not all(metric in scores for scores in (entry["metrics"], *entry["halves"])):
            return f" cannot be a record: an epoch lacks {metric}, on the whole set or on one of two halves"
    if content["run_id"].split("/")[1:] != [path.parent.name, path.stem]:
        return f" is the record of {content['run_id']}: it was renamed or copied"
    return ""


def _has_control_characters(content: dict[str, Any]) -> bool:
    """Whether a text has some; a template in the config may have line ends and tabs."""
    lines = (text.replace("\n", "").replace("\t", "") for text in texts(content.get("config")))
    others = texts({key: value for key, value in content.items() if key != "config"})
    return any(map(CONTROL.search, itertools.chain(lines, others)))


def parts(record: RunRecord) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(git, env) of every part of a run: it has several if it was resumed by other code or on another device."""
    return [*((part["git"], part["env"]) for part in record.env.get("earlier", [])), (record.git, record.env)]


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


def best_epoch(record: RunRecord) -> dict[str, Any]:
    """The first evaluation with the best selection metric."""
    return best_entry(record.epochs, record.metric)


def best_entry(epochs: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    """The first of the selectable entries with the highest `metric`, or the lowest loss."""
    return (min if metric == "loss" else max)(selectable(epochs), key=lambda entry: entry["metrics"][metric])


def selectable(epochs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries that may be chosen as the best: a method may rule out the first of them.
    All, where it ruled out all."""
    return [entry for entry in epochs if entry.get("selectable", True)] or epochs


@functools.cache  # the seeds of a point have one config
def _hash_of(config: str) -> str:
    return config_hash(json.loads(config))


def _digest(content: dict[str, Any]) -> str:
    """Raises ValueError for a number that is not finite."""
    return sha256_json({key: value for key, value in content.items() if key != "digest"})
