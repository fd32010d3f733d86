"""What tests/test_hub.py runs in a process of its own, whose environment names the hub of tests/hub_server.py.

huggingface_hub reads HF_ENDPOINT when it is imported, so one such process serves many tests.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import huggingface_hub
import numpy as np
from hydra.utils import instantiate
from omegaconf import OmegaConf

from melora_bench.data import load_rows
from melora_bench.files import sha256_file
from melora_bench.hub import hub_snapshot
from melora_bench.points import compose_run
from melora_bench.tasks.instruct import read


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


def configured(group: str, overrides: list[str]):
    return instantiate(compose_run(overrides)[0][group], _convert_="all")


def task_rows(cache: Path, task: str, *overrides: str, offline: bool = False) -> dict[str, tuple[list, list, dict]]:
    """{split: (texts, labels, origin)} of every split of a GLUE task, as a run reads them."""
    with at(cache, offline):
        source, made = (configured(group, [f"task={task}", "data=hub", *overrides]) for group in ("data", "task"))
        rows = {
            split: load_rows(source, task, split, made.text, None, optional=False)
            for split in (made.train_split, *made.eval_splits)
        }
        for split, found in rows.items():
            made._check_labels(found.labels, split)
            assert found.labels.dtype == np.float64
    return {split: (found.texts, found.labels.tolist(), found.origin) for split, found in rows.items()}


def questions(cache: Path, name: str, fields: dict):
    """The questions of a benchmark, sized by `fields`."""
    from melora_bench.records import ROOT

    with at(cache, False):
        config = OmegaConf.load(ROOT / "configs" / "task" / f"{name}.yaml")
        return instantiate(OmegaConf.merge(config, fields)).read()


def instructions(cache: Path, *overrides: str) -> tuple[list[dict], dict]:
    with at(cache, False):
        task = configured("task", ["task=alpaca", *overrides])
        path, origin = configured("data", ["data=hub"]).whole(task.name, task.repo, task.revision)
        return read(path), origin


def weights(cache: Path, *overrides: str, offline: bool = False) -> tuple[dict[str, str], dict, float]:
    """{file: sha256} of a backbone's folder, what the record says of it, and the sum of its loaded weights."""
    with at(cache, offline):
        backbone = configured("backbone", ["backbone=roberta_base", *overrides])
        model, tokens = backbone.model(2), backbone.tokenizer()("the film")["input_ids"]
        folder = backbone.folder[0]
        files = {str(path.relative_to(folder)): sha256_file(path) for path in folder.rglob("*") if path.is_file()}
        total = sum(float(p.double().sum()) for name, p in model.named_parameters() if "classifier" not in name)
    assert len(tokens) == 4
    return files, backbone.origin(), total


def fetched(cache: Path, repo: str, *, kind: str = "dataset", revision: str = "main", offline: bool = False,
            patterns: tuple[str, ...] = ("*",)) -> tuple[dict[str, str] | str, str | None, list[float]]:  # fmt: skip
    """({file: sha256}, commit, waits) of a snapshot; (the line, None, waits) where it is refused."""
    with at(cache, offline) as waits:
        try:
            folder, commit = hub_snapshot(repo, revision, kind=kind, patterns=list(patterns), offline="use a copy")
        except ValueError as error:
            return str(error), None, waits
    files = {str(path.relative_to(folder)): sha256_file(path) for path in folder.rglob("*") if path.is_file()}
    return files, commit, waits


def loaded_by_datasets(cache: Path, repo: str, config: str) -> dict[str, list[dict]]:
    """The same rows as the datasets library reads them from the hub."""
    import datasets

    with at(cache, False):
        found = datasets.load_dataset(repo, config, cache_dir=str(cache / "datasets"))
        return {split: rows.to_list() for split, rows in found.items()}
