"""A finished run's adapter file as a model again: finding the file, building the model, loading the seed."""

import glob
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from transformers import PreTrainedModel

from melora_bench.adapters.files import account, load_tensors
from melora_bench.external.fields import build
from melora_bench.files import CONFIGS
from melora_bench.methods.base import Method
from melora_bench.models.base import Backbone
from melora_bench.records import records
from melora_bench.records.inputs import difference, of_model


@dataclass(kw_only=True)
class Trained:
    """One seed of a run, built anew from its adapter file."""

    # The file's own account: run_id, seed, config, choices, git, model, and the epoch's entry of the record.
    account: dict
    model: PreTrainedModel
    method: Method
    backbone: Backbone
    num_labels: int


def find(run: str, which: str, output_dir: str) -> list[Path]:
    """The adapter files that `run` names: a record, an adapter file, <experiment>/<task>/<method>-<hash> with or
    without -s<seed>, or a whole <experiment>. Raises ValueError when there is none."""
    if which not in ("best", "last"):
        raise ValueError(f"which={which!r} is unknown: use best or last")
    if run.endswith(".safetensors"):
        files = [Path(run)]
    else:
        name = records.load(_existing(run)).run_id if run.endswith(".json") else run
        runs = Path(output_dir, "runs")
        files = [runs / name / f"{which}.safetensors"]
        if not files[0].exists() and not Path(name).is_absolute():
            places = (f"{glob.escape(name)}-s*", f"{glob.escape(name)}/*/*")
            files = [file for place in places for file in sorted(runs.glob(f"{place}/{which}.safetensors"))] or files
    return [_existing(file) for file in files]


def load(path: Path, backbone_path: str | None = None, *, as_trained: bool = False) -> Trained:
    """Build the model that an adapter file belongs to, and load the file into it. The frozen weights are in float32;
    with `as_trained` they are in the precision of the training, which may be lower or 4 bits. Raises ValueError for
    other frozen weights than those that the run trained on."""
    saved = account(path)
    exact = {} if as_trained else {"dtype": "float32", "quantization": None}
    commit = saved["model"].get("commit")
    places = {"path": backbone_path} | ({"revision": commit} if commit else {})
    try:
        method, task = _built(saved, "method"), _built(saved, "task")
        num_labels = task.num_labels
        backbone: Backbone = _built(saved, "backbone", **exact, **places).for_task(num_labels)
    except ValueError as error:
        raise ValueError(f"{path} says what no run of ours does: {error}") from error
    if not backbone_path and backbone.repo != _option("backbone", saved["choices"]["backbone"])["repo"]:
        raise ValueError(
            f"{path} names {backbone.repo} as its backbone, which is none of ours: name a local copy with "
            "backbone.path=DIR"
        )
    if differing := difference(of_model(saved["model"]), of_model(backbone.origin())):
        raise ValueError(
            f"{path} was trained on another backbone than {backbone.folder[0]} holds ({differing}): "
            "name its own with backbone.path=DIR"
        )
    model = backbone.model(num_labels)
    try:
        method.attach(model, backbone.head, [saved["seed"]], saved["total_steps"])
    except (RuntimeError, MemoryError, OverflowError) as error:
        raise ValueError(f"{path} asks for layers that cannot be made ({str(error).partition(chr(10))[0]})") from error
    load_tensors(model, 0, path)
    return Trained(account=saved, model=model.eval(), method=method, backbone=backbone, num_labels=num_labels)


def _built(saved: dict, group: str, **instead: object) -> Any:
    """The object of a config group: configs/ gives its class, the file its values. `instead` replaces the values of
    those of its keys that the option in configs/ has. Raises ValueError as `build` does."""
    option = _option(group, saved["choices"][group])
    known = {key: value for key, value in instead.items() if key in option}
    return build({**saved["config"][group], **known, "_target_": option["_target_"]}, group)


def _option(group: str, choice: str) -> dict[str, Any]:
    """The YAML of a config group's option, unresolved."""
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(CONFIGS / group / f"{choice}.yaml")))


def _existing(path: str | Path) -> Path:
    if not Path(path).is_file():
        raise ValueError(
            f"{path} does not exist: run= takes a record, an adapter file, or "
            "<experiment>/<task>/<method>-<hash>[-s<seed>] with adapters under output_dir"
        )
    return Path(path)
