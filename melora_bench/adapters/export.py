"""A finished run as a PEFT LoRA adapter folder, or merged into a plain transformers checkpoint."""

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import torch

from melora_bench.adapters import peft_format
from melora_bench.adapters.card import adapter_card, base_name, merged_card, picks_first_token
from melora_bench.adapters.files import account, backbone_tensors
from melora_bench.adapters.trained import Trained, find, load
from melora_bench.files import write_folder, write_text
from melora_bench.methods.attach import head_names, merge
from melora_bench.methods.layers import FactoredLayer
from melora_bench.models.base import AS_DATA
from melora_bench.models.fused import stock
from melora_bench.models.pooling import pooled

TOLERANCE = 1e-5  # of logits, in float32


def export(
    run: str, to: str, *, which: str, merged: bool, output_dir: str, backbone_path: str | None, base: str | None = None
) -> dict[Path, float | None]:
    """Write the folder `to`, with one folder s<seed> in it per seed if `run` names several: all of it, or nothing.
    `base` is the public name of the backbone that the folders are to give.

    Returns the folders, each with the `difference` that loading it with a stock library made. Raises ValueError when
    nothing is found, `to` is taken, a method has no adapter to write, or that difference is more than rounding.
    """
    files, target = find(run, which, output_dir), Path(to).absolute()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ValueError(f"to={to} exists: name a new folder")
    places = [f"s{account(file)['seed']}" if len(files) > 1 else "." for file in files]
    differences: dict[Path, float | None] = {}

    def write(temporary: Path) -> None:
        for file, place in zip(files, places, strict=True):
            trained, folder = load(file, backbone_path), temporary / place
            folder.mkdir(exist_ok=True)
            (write_merged if merged else write_adapter)(trained, folder, base)
            differences[Path(to) / place] = _checked(trained, folder, merged)

    write_folder(target, write)
    return differences


def _checked(trained: Trained, folder: Path, merged: bool) -> float | None:
    gap = difference(trained, folder, merged)
    if gap is not None and not gap < TOLERANCE:
        run = trained.account["run_id"]
        raise ValueError(f"{run}: logits of a stock library differ from ours by {gap:.1e}, nothing written")
    return gap


def difference(trained: Trained, folder: Path, merged: bool) -> float | None:
    """The largest difference between our logits and a stock library's that loads `folder`, relative to the largest
    logit where that is above 1; None without peft."""
    if not merged and not importlib.util.find_spec("peft"):
        return None
    if merged:
        theirs = trained.backbone.auto.from_pretrained(folder, use_safetensors=True, **AS_DATA)
    else:
        import peft

        with warnings.catch_warnings():  # peft asks for what transformers calls otherwise now
            warnings.simplefilter("ignore", FutureWarning)
            theirs = peft.PeftModel.from_pretrained(trained.backbone.stock(trained.num_labels), folder)
    source = torch.Generator().manual_seed(0)
    ids = torch.randint(trained.model.config.vocab_size, (4, 16), generator=source)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        ours, others = trained.model(**inputs).logits, _stock_logits(theirs.eval(), trained, inputs, merged)
        return ((others - ours).abs().max() / ours.abs().max().clamp(min=1)).item()


def _stock_logits(model: Any, trained: Trained, inputs: dict, merged: bool) -> torch.Tensor:
    """The logits of a stock library's model (of transformers, or of peft around one). Where `backbone.pooling` says
    what the head reads, this function calls the head itself."""
    if trained.backbone.pooling is None:
        return model(**inputs).logits
    plain = model if merged else model.get_base_model()
    hidden = plain.base_model(**inputs).last_hidden_state
    value = pooled(hidden, trained.backbone.pooling, mask=inputs["attention_mask"])
    for name in head_names(trained.backbone.head):
        first = picks_first_token(trained.model.get_submodule(name))
        value = plain.get_submodule(name)(value[:, None] if first else value)
    return value


def write_adapter(trained: Trained, folder: Path, base: str | None) -> None:
    """adapter_config.json, adapter_model.safetensors (float32, head included) and README.md, for peft.PeftModel.

    Raises ValueError for a method whose updates are not products of two factors, or that changed the backbone itself.
    """
    run_id, backbone, method = trained.account["run_id"], trained.backbone, trained.method
    try:
        method.require_form("factors")
    except ValueError as error:
        raise ValueError(f"{run_id}: {error}") from error
    if backbone_tensors(trained.model, method.layers):
        raise ValueError(f"{run_id} changed the backbone itself, it has no adapter: export it with merged=true")
    base = base_name(backbone, base)
    peft_format.write(
        folder,
        trained.model,
        method.layers_of(FactoredLayer),
        0,
        modules_to_save=head_names(backbone.head),
        task_type=backbone.kind,
        base=base,
        revision=backbone.folder[1] if base == backbone.repo else None,
    )
    write_text(folder / "README.md", adapter_card(trained, base))


def write_merged(trained: Trained, folder: Path, base: str | None) -> None:
    """A checkpoint that transformers loads by itself, with the tokenizer and README.md. Raises ValueError for a method
    whose updates are no change of a weight."""
    try:
        trained.method.require_form("factors", "matrix")
    except ValueError as error:
        raise ValueError(f"{trained.account['run_id']}: {error}") from error
    stock(merge(trained.model, 0)).save_pretrained(folder)
    trained.backbone.tokenizer().save_pretrained(folder)
    write_text(folder / "README.md", merged_card(trained, base_name(trained.backbone, base)))
