"""A finished run as a PEFT LoRA adapter folder, or merged into a plain transformers checkpoint."""

import glob
import html
import importlib.util
import inspect
import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn

from melora_bench.adapters.peft_format import PREFIX, to_peft
from melora_bench.external.embedded import PUBLIC
from melora_bench.files import CONFIGS, write_folder, write_text
from melora_bench.methods.base import Method, ReplicatedLinear, merge
from melora_bench.models.backbones import AS_DATA
from melora_bench.records import records
from melora_bench.training import checkpoints, inputs
from melora_bench.training.configs import build

TOLERANCE = 1e-5  # of logits, in float32


@dataclass(kw_only=True)
class Trained:
    """One seed of a run, built anew from its adapter file."""

    about: (
        dict  # the file's own account: run_id, seed, config, choices, git, model, and the epoch's entry of the record
    )
    model: nn.Module
    method: Method
    backbone: object
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
    """Build the model that an adapter file belongs to, and load it: the frozen weights in float32, or as they were kept
    while it trained, in less or in 4 bits. Raises ValueError when the weights are not those."""
    about = checkpoints.account(path)
    exact = {} if as_trained else {"dtype": "float32", "quantization": None}
    commit = about["model"].get("commit")
    places = {"path": backbone_path} | ({"revision": commit} if commit else {})
    try:
        method, task = _built(about, "method"), _built(about, "task")
        backbone = _built(about, "backbone", **exact, **places)
        num_labels = task.num_labels
    except ValueError as error:
        raise ValueError(f"{path} says what no run of ours does: {error}") from error
    if not backbone_path and backbone.repo != _own("backbone", about["choices"]["backbone"])["repo"]:
        raise ValueError(f"{path} names {backbone.repo} as its backbone, which is none of ours: name a local copy with "
                         "backbone.path=DIR")  # fmt: skip
    if differing := inputs.difference(inputs.of_model(about["model"]), inputs.of_model(backbone.origin())):
        raise ValueError(f"{path} was trained on another backbone than {backbone.folder[0]} holds ({differing}): name its own "
                         "with backbone.path=DIR")  # fmt: skip
    model = backbone.model(num_labels)
    try:
        method.attach(model, backbone.head, [about["seed"]], about["total_steps"])
    except (RuntimeError, MemoryError, OverflowError) as error:
        raise ValueError(f"{path} asks for layers that cannot be made ({str(error).partition(chr(10))[0]})") from error
    checkpoints.load_tensors(model, 0, path)
    return Trained(about=about, model=model.eval(), method=method, backbone=backbone, num_labels=num_labels)


def _built(about: dict, group: str, **instead: object):
    """The object of a config group as the file has its values, of the class that configs/ has; keys of `instead` that the
    class has take its values. Raises ValueError as `build` does."""
    own = _own(group, about["choices"][group])
    known = {key: value for key, value in instead.items() if key in own}
    return build({**about["config"][group], **known, "_target_": own["_target_"]}, group)


def _own(group: str, choice: str) -> dict:
    """The YAML of a config group's option, unresolved."""
    return OmegaConf.to_container(OmegaConf.load(CONFIGS / group / f"{choice}.yaml"))


def export(
    run: str, to: str, *, which: str, merged: bool, output_dir: str, backbone_path: str | None, base: str | None = None
) -> dict[Path, float | None]:
    """Write the folder `to`, with one folder s<seed> in it per seed if `run` names several: all of it, or nothing. `base` is
    the public name of the backbone that the folders are to give.

    Returns the folders, each with the `difference` that loading it with a stock library made. Raises ValueError when
    nothing is found, `to` is taken, a method has no adapter to write, or that difference is more than rounding.
    """
    files, target = find(run, which, output_dir), Path(to).absolute()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ValueError(f"to={to} exists: name a new folder")
    places = [f"s{checkpoints.account(file)['seed']}" if len(files) > 1 else "." for file in files]
    found = {}

    def write(temporary: Path) -> None:
        for file, place in zip(files, places, strict=True):
            trained, folder = load(file, backbone_path), temporary / place
            folder.mkdir(exist_ok=True)
            (write_merged if merged else write_adapter)(trained, folder, base)
            found[Path(to) / place] = _checked(trained, folder, merged)

    write_folder(target, write)
    return found


def _checked(trained: Trained, folder: Path, merged: bool) -> float | None:
    found = difference(trained, folder, merged)
    if found is not None and not found < TOLERANCE:
        run = trained.about["run_id"]
        raise ValueError(f"{run}: logits of a stock library differ from ours by {found:.1e}, nothing written")
    return found


def difference(trained: Trained, folder: Path, merged: bool) -> float | None:
    """The largest difference between our logits and a stock library's that loads `folder`, relative to the largest
    logit where that is above 1; None without peft."""
    if not merged and not importlib.util.find_spec("peft"):
        return None
    if merged:
        stock = trained.backbone.auto.from_pretrained(folder, use_safetensors=True, **AS_DATA)
    else:
        import peft

        with warnings.catch_warnings():  # peft asks for what transformers calls otherwise now
            warnings.simplefilter("ignore", FutureWarning)
            stock = peft.PeftModel.from_pretrained(trained.backbone.stock(trained.num_labels), folder)
    source = torch.Generator().manual_seed(0)
    ids = torch.randint(trained.model.config.vocab_size, (4, 16), generator=source)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        ours, theirs = trained.model(**inputs).logits, _stock_logits(stock.eval(), trained, inputs, merged)
        return ((theirs - ours).abs().max() / ours.abs().max().clamp(min=1)).item()


def _stock_logits(model: nn.Module, trained: Trained, inputs: dict, merged: bool) -> torch.Tensor:
    """Those of a stock library's model, its head called by hand where it is to read means."""
    if not _reads_means(trained):
        return model(**inputs).logits
    plain = model if merged else model.get_base_model()
    hidden, mask = plain.base_model(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
    means = (hidden * mask).sum(1) / mask.sum(1)
    return plain.get_submodule(trained.backbone.head)(means if _is_linear(trained) else means[:, None])


def _reads_means(trained: Trained) -> bool:
    return getattr(trained.backbone, "pooling", None) == "mean"


def _is_linear(trained: Trained) -> bool:
    """Whether the head is one linear layer; RoBERTa's picks the first token of (rows, tokens, width) itself."""
    return isinstance(trained.model.get_submodule(trained.backbone.head), ReplicatedLinear)


def _mean_code(trained: Trained, merged: bool) -> str:
    """`_stock_logits` of a loaded `model`, for the card; empty where the head reads what it always does."""
    if not _reads_means(trained):
        return ""
    return f"""


def logits(**inputs):
    # The head reads the mean over a row's tokens, which no class of transformers does.
    plain = {"model" if merged else "model.get_base_model()"}
    hidden, mask = plain.base_model(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
    means = (hidden * mask).sum(1) / mask.sum(1)
    return plain.{trained.backbone.head}(means{"" if _is_linear(trained) else "[:, None]"})"""


def write_adapter(trained: Trained, folder: Path, base: str | None) -> None:
    """adapter_config.json, adapter_model.safetensors (float32, head included) and README.md, for peft.PeftModel."""
    head, backbone = trained.backbone.head, trained.backbone
    tensors = checkpoints.adapter_tensors(trained.model, 0)
    in_head = {name: value for name, value in tensors.items() if head and name.startswith(f"{head}.")}
    if any(name not in in_head and not name.startswith(tuple(trained.method.layers)) for name in tensors):
        raise ValueError(
            f"{trained.about['run_id']} changed the backbone itself, it has no adapter: export it with merged=true"
        )
    config, factors = to_peft(trained.method.layers, 0)
    factors |= {f"{PREFIX}{name}": value.float().cpu().contiguous() for name, value in in_head.items()}
    save_file(factors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    base = _base(backbone, base)
    config |= {
        "peft_type": "LORA",
        "task_type": backbone.kind,
        "modules_to_save": [head] if head else None,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "base_model_name_or_path": base,
        "revision": backbone.folder[1] if base == backbone.repo else None,
    }
    write_text(folder / "adapter_config.json", json.dumps(config, indent=2) + "\n")
    labels = f", num_labels={trained.num_labels}" if head else ""
    auto = _auto(backbone, "AutoPeftModel" if base else "AutoModel")
    if base:
        loading = f"""from peft import {auto}

model = {auto}.from_pretrained("this folder"{labels}).eval()"""
    else:
        loading = f"""from peft import PeftModel
from transformers import {auto}

backbone = {auto}.from_pretrained("the backbone's folder"{labels})
model = PeftModel.from_pretrained(backbone, "this folder").eval()"""
    write_text(folder / "README.md", card(trained, "peft", base, loading + _mean_code(trained, merged=False)))


def write_merged(trained: Trained, folder: Path, base: str | None) -> None:
    """A checkpoint that transformers loads by itself, with the tokenizer and README.md."""
    merge(trained.model, 0).save_pretrained(folder)
    trained.backbone.tokenizer().save_pretrained(folder)
    auto = _auto(trained.backbone, "AutoModel")
    loading = f"""from transformers import {auto}

model = {auto}.from_pretrained("this folder").eval()"""
    loading += _mean_code(trained, merged=True)
    write_text(folder / "README.md", card(trained, "transformers", _base(trained.backbone, base), loading))


def card(trained: Trained, library: str, base: str | None, loading: str) -> str:
    """The model card: which run this is, how it scored, how to load it."""
    about, target = trained.about, type(trained.method)
    source = inspect.getdoc(inspect.getmodule(target)).splitlines()[0]
    settings = {key: value for key, value in about["config"]["method"].items() if key != "version"}
    commit = (about["git"]["commit"] or "unknown") + (" with local changes" if about["git"]["dirty"] else "")
    rows = {
        "method": source,
        "settings": ", ".join(f"{key} {value}" for key, value in settings.items()),
        "backbone": f"{about['model']['name']}, weights sha256 {about['model']['sha256']}",
        "task": about["choices"]["task"],
        "seed": about["seed"],
        "epoch": f"{about['epoch']} of {about['config']['epochs']}",
        "scores on the evaluation set": ", ".join(f"{key} {value:.4f}" for key, value in about["metrics"].items()),
        "run": f"{about['run_id']}, config hash {about['config_hash']}",
        "melora_bench commit": commit,
    }
    table = "\n".join(f"| {key} | {_cell(value)} |" for key, value in rows.items())
    base_model = f"\nbase_model: {json.dumps(base)}" if base else ""
    return f"""---
library_name: {library}{base_model}
---

# {about["choices"]["method"]} on {about["choices"]["task"]}

| | |
| --- | --- |
{table}

```python
{loading}
```
"""


def _cell(value: object) -> str:
    """On one line of a Markdown table, as it stands."""
    return html.escape(" ".join(str(value).split()), quote=False).replace("|", "\\|")


def _auto(backbone, prefix: str) -> str:
    """The name of the library's class that loads this kind of model."""
    return backbone.auto.__name__.replace("AutoModel", prefix)


def _base(backbone, base: str | None) -> str | None:
    """The public name of the frozen weights: the one given, the hub's repository, or the one whose sha256 agrees. A folder
    of this machine is no name for others, so that without any of these there is none."""
    origin = backbone.origin()
    return base or (origin["repo"] if origin["commit"] else PUBLIC.get(origin["sha256"]))


def _existing(path: str | Path) -> Path:
    if not Path(path).is_file():
        raise ValueError(f"{path} does not exist: run= takes a record, an adapter file, or "
                         "<experiment>/<task>/<method>-<hash>[-s<seed>] with adapters under output_dir")  # fmt: skip
    return Path(path)
