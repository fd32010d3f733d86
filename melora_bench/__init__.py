"""melora_bench: a reproducible benchmark of the LoRA family."""

import importlib

__version__ = "0.1.0"
# The Python API, by the module that holds it: imported when it is asked for, as some of it takes torch.
_LAZY = {
    "Table": "melora_bench.results.frames",
    "load_records": "melora_bench.results.frames",
}
__all__ = list(_LAZY)


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
