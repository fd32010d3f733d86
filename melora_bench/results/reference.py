"""The settings of a paper's own run or score, against which the settings of a record are held."""

import functools
import re
from typing import Any

from omegaconf import OmegaConf

from melora_bench.external.shapes import leaves
from melora_bench.files import CONFIGS, options
from melora_bench.grids.tables import Table
from melora_bench.records.identity import identity
from melora_bench.records.records import RunRecord

Settings = dict[str, Any]  # by config key
# Keys of a run's identity that a paper has no value for: they change memory alone, draw nothing at the paper's
# temperature, or say how we call a backbone.
NOT_THE_PAPERS = {"accumulation", "eval_batch_size", "task.seed", "backbone.name", "backbone.seen"}


def differing(record: RunRecord, table: Table, apart: set[str]) -> list[str]:
    """In words, every setting in which a record is not the paper's own run or score, on whichever backbone.

    The whole identity counts, but for NOT_THE_PAPERS and the keys `apart`; of the data, which copy of a hub was read.
    """
    expected, found = _expected(record, table), dict(leaves(record.config))
    if not record.choices["recipe"]:  # the score of a model that nobody trained
        found = {key: value for key, value in found.items() if not key.startswith("method.")}
    if "data.revision" in found:
        expected = expected | _values("data", "hub")
    others = {key for key in found if key.startswith("data.") and key not in expected}
    return [
        f"{key} {_short(found.get(key))} instead of {_short(expected.get(key))}"
        for key in expected | found
        if key not in NOT_THE_PAPERS | apart | others and found.get(key) != expected.get(key)
    ]


def _expected(record: RunRecord, table: Table) -> Settings:
    """The settings of the paper's run, or score, on the record's backbone; on the table's, if configs/ has no such."""
    assert table.paper
    method, task, backbone = (record.choices[group] for group in ("method", "task", "backbone"))
    backbone = backbone if backbone in options("backbone") else table.backbone
    trained = training_settings(table.paper, table.trained_on or task, method, backbone)
    if "trained_on" not in record.config:
        return trained
    asked = _values("benchmark", task, group="task") | {"task.limit": None, "task.which": "best"}
    if record.choices["recipe"]:
        return {re.sub(r"^task\.", "trained_on.", key): value for key, value in trained.items()} | asked
    return asked | {key: value for key, value in trained.items() if key.startswith("backbone.") or key == "precision"}


@functools.cache
def training_settings(paper: str, task: str, method: str, backbone: str) -> Settings:
    """The identity of the paper's own run: the defaults, its recipe, and the YAMLs of the groups, without the data."""
    defaults, recipe = (OmegaConf.load(CONFIGS / name) for name in ("train.yaml", f"recipe/{paper}/{task}.yaml"))
    names = {"method": method, "task": task, "backbone": backbone}
    groups = {group: OmegaConf.load(CONFIGS / group / f"{name}.yaml") for group, name in names.items()}
    whole: Any = OmegaConf.merge(defaults, {"precision": "no"}, recipe, groups)
    for key in ("defaults", "hydra"):
        del whole[key]
    resolved: Any = OmegaConf.to_container(whole, resolve=True)
    return dict(leaves(identity(resolved)))


@functools.cache
def _values(folder: str, name: str, group: str | None = None) -> Settings:
    """The values of a config group's option that are part of a run's identity, by config key."""
    values: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / folder / f"{name}.yaml"))
    return dict(leaves(identity({group or folder: values})))


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 40 else f"{text[:37]}..."
