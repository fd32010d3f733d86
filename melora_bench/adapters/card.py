"""The README.md of an exported folder: which run this is, how it scored, how a stock library loads it."""

import html
import inspect
import json

from torch import nn

from melora_bench.adapters.trained import Trained
from melora_bench.external.embedded import PUBLIC
from melora_bench.methods.attach import head_names
from melora_bench.models.base import Backbone


def adapter_card(trained: Trained, base: str | None) -> str:
    """The card of a PEFT adapter; `base`: the public name of the backbone, None where it has none."""
    auto = _auto(trained.backbone, "AutoPeftModel" if base else "AutoModel")
    labels = f", num_labels={trained.num_labels}" if head_names(trained.backbone.head) else ""
    if base:
        loading = f"""from peft import {auto}

model = {auto}.from_pretrained("this folder"{labels}).eval()"""
    else:
        loading = f"""from peft import PeftModel
from transformers import {auto}

backbone = {auto}.from_pretrained("the backbone's folder"{labels})
model = PeftModel.from_pretrained(backbone, "this folder").eval()"""
    return _card(trained, "peft", base, loading + _pooling_code(trained, "model.get_base_model()"))


def merged_card(trained: Trained, base: str | None) -> str:
    """The card of a plain transformers checkpoint."""
    auto = _auto(trained.backbone, "AutoModel")
    loading = f"""from transformers import {auto}

model = {auto}.from_pretrained("this folder").eval()"""
    return _card(trained, "transformers", base, loading + _pooling_code(trained, "model"))


def base_name(backbone: Backbone, base: str | None) -> str | None:
    """The public name of the frozen weights: the one given, the hub's repository, or the one whose sha256 agrees. A
    folder of this machine is no name for others, so that without any of these there is none."""
    origin = backbone.origin()
    return base or (origin["repo"] if origin["commit"] else PUBLIC.get(origin["sha256"]))


# How Python picks what the head reads, from `hidden` (rows, length, width) and `mask` (rows, length).
PICKED = {
    "first": "hidden[range(len(hidden)), mask.argmax(1)]",
    "mean": "(hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)",
    "last": "hidden[range(len(hidden)), mask.cumsum(1).argmax(1)]",
}
WHAT = {"first": "a row's first token", "mean": "the mean over a row's tokens", "last": "a row's last token"}


def picks_first_token(head: nn.Module) -> bool:
    """Whether a head takes (rows, tokens, width) and picks the first token itself, as RoBERTa's does;
    one linear layer reads (rows, width)."""
    return any(True for _ in head.children())


def _card(trained: Trained, library: str, base: str | None, loading: str) -> str:
    account = trained.account
    paper = (inspect.getdoc(inspect.getmodule(type(trained.method))) or "").partition("\n")[0]
    settings = {key: value for key, value in account["config"]["method"].items() if key != "version"}
    commit = (account["git"]["commit"] or "unknown") + (" with local changes" if account["git"]["dirty"] else "")
    rows = {
        "method": paper,
        "settings": ", ".join(f"{key} {value}" for key, value in settings.items()),
        "backbone": f"{account['model']['name']}, weights sha256 {account['model']['sha256']}",
        "task": account["choices"]["task"],
        "seed": account["seed"],
        "epoch": f"{account['epoch']} of {account['config']['epochs']}",
        "scores on the evaluation set": ", ".join(f"{key} {value:.4f}" for key, value in account["metrics"].items()),
        "run": f"{account['run_id']}, config hash {account['config_hash']}",
        "melora_bench commit": commit,
    }
    table = "\n".join(f"| {key} | {_cell(value)} |" for key, value in rows.items())
    base_model = f"\nbase_model: {json.dumps(base)}" if base else ""
    return f"""---
library_name: {library}{base_model}
---

# {account["choices"]["method"]} on {account["choices"]["task"]}

| | |
| --- | --- |
{table}

```python
{loading}
```
"""


def _pooling_code(trained: Trained, plain: str) -> str:
    """Python of the card that calls the head of the model `plain` on what `backbone.pooling` says;
    empty where the head reads what it always does."""
    pooling = trained.backbone.pooling
    if pooling is None:
        return ""
    value = "vectors"
    for name in head_names(trained.backbone.head):
        first = picks_first_token(trained.model.get_submodule(name))
        value = f"plain.{name}({value}{'[:, None]' if first else ''})"
    return f"""


def logits(**inputs):
    # The head reads {WHAT[pooling]}, by the mask, which no class of transformers does.
    plain = {plain}
    hidden, mask = plain.base_model(**inputs).last_hidden_state, inputs["attention_mask"]
    vectors = {PICKED[pooling]}
    return {value}"""


def _cell(value: object) -> str:
    """On one line of a Markdown table, as it stands."""
    return html.escape(" ".join(str(value).split()), quote=False).replace("|", "\\|")


def _auto(backbone: Backbone, prefix: str) -> str:
    """The name of the library's class that loads this kind of model."""
    return backbone.auto.__name__.replace("AutoModel", prefix)
