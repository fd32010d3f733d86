"""melora_bench: a reproducible benchmark of the LoRA family."""

__version__ = "0.1.0"
