"""melora_bench: a reproducible benchmark of the LoRA family.

What other code calls is imported when it is first asked for, so that `import melora_bench` stays cheap and needs no torch.
"""

import importlib

__version__ = "0.1.0"

# Name -> the module that defines it.
API = {
    "Table": "melora_bench.results.frames",
    "adapt": "melora_bench.adapters.adapt",
    "export": "melora_bench.adapters.export",
    "load_records": "melora_bench.results.frames",
    "run": "melora_bench.results.running",
}


def __getattr__(name: str) -> object:
    if name not in API:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(API[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *API])
