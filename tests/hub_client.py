"""What tests/test_hub.py runs in a process of its own, whose environment names the hub of tests/hub_server.py.

huggingface_hub reads HF_ENDPOINT when it is imported, so one such process serves many tests.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import huggingface_hub
from hydra.utils import instantiate
from omegaconf import OmegaConf

from melora_bench.external.hub import hub_snapshot
from melora_bench.files import ROOT, sha256_file
from melora_bench.tasks.instruct import read
from melora_bench.tasks.rows import load_rows
from melora_bench.training.configs import compose_run


@contextlib.contextmanager
def at(cache: Path, offline: bool) -> Iterator[list[float]]:
    """Use this cache; yields the seconds that were asked of time.sleep, which returns at once."""
    constants, waits = huggingface_hub.constants, []
    with (
        mock.patch.object(constants, "HF_HUB_CACHE", str(cache)),
        mock.patch.object(constants, "HF_HUB_OFFLINE", offline),
        mock.patch.object(time, "sleep", waits.append),
    ):
        yield waits


def made(group: str, name: str, *overrides: str):
    """The object of configs/<group>/<name>.yaml."""
    config = OmegaConf.load(ROOT / "configs" / group / f"{name}.yaml")
    return instantiate(OmegaConf.merge(config, OmegaConf.from_dotlist(list(overrides))), _convert_="all")


def task_rows(cache: Path, name: str, *, offline: bool = False) -> dict[str, tuple[list, list, dict]]:
    """{split: (texts, labels, origin)} of every split of a GLUE task, as a run reads them."""
    source, task = made("data", "hub"), made("task", name)
    found = {}
    with at(cache, offline):
        for split in (task.train_split, *task.eval_splits):
            rows = load_rows(source, name, split, task.text, None, optional=False)
            task._check_labels(rows.labels, split)
            found[split] = rows.texts, rows.labels.tolist(), rows.origin
    return found


def questions(cache: Path, name: str, *overrides: str, offline: bool = False):
    with at(cache, offline):
        return made("benchmark", name, *overrides).read()


def instructions(cache: Path, *, offline: bool = False) -> tuple[list[dict], dict]:
    task = made("task", "alpaca")
    with at(cache, offline):
        path, origin = made("data", "hub").single_file(task.name, task.repo, task.revision)
        return read(path), origin


def weights(cache: Path, *overrides: str, offline: bool = False) -> tuple[dict[str, str], dict, float]:
    """{file: sha256} of a backbone's folder, what the record says of it, and the sum of its loaded weights."""
    with at(cache, offline):
        backbone = made("backbone", "roberta_base", *overrides)
        model, tokens = backbone.model(2), backbone.tokenizer()("the film")["input_ids"]
        folder = backbone.folder[0]
        files = {str(path.relative_to(folder)): sha256_file(path) for path in folder.rglob("*") if path.is_file()}
        total = sum(float(p.double().sum()) for name, p in model.named_parameters() if "classifier" not in name)
    assert len(tokens) == 4
    return files, backbone.origin(), total


def fetched(
    cache: Path,
    repo: str,
    *,
    kind: str = "dataset",
    revision: str = "main",
    offline: bool = False,
    patterns: tuple[str, ...] = ("*",),
) -> tuple[dict[str, str] | str, str | None, list[float]]:
    """({file: sha256}, commit, waits) of a snapshot; (the line, None, waits) where it is refused."""
    with at(cache, offline) as waits:
        try:
            folder, commit = hub_snapshot(repo, revision, kind=kind, patterns=list(patterns), offline="use a copy")
        except ValueError as error:
            return str(error), None, waits
    files = {str(path.relative_to(folder)): sha256_file(path) for path in folder.rglob("*") if path.is_file()}
    return files, commit, waits


def trained(cache: Path, overrides: list[str], offline: bool = False) -> list[Path] | str:
    """The records of a run, or its one line."""
    from melora_bench.training.run import RunError, run

    with at(cache, offline):
        try:
            return run(*compose_run(overrides))
        except RunError as error:
            return str(error)


def loaded_by_datasets(cache: Path, repo: str, config: str) -> dict[str, list[dict]]:
    """The same rows as the datasets library reads them from the hub."""
    import datasets

    with at(cache, False):
        found = datasets.load_dataset(repo, config, cache_dir=str(cache / "datasets"))
        return {split: rows.to_list() for split, rows in found.items()}
