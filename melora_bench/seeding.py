"""Random streams that nothing else can disturb."""

import hashlib

import torch


def derive(*names: object) -> int:
    """A 56-bit seed that depends on the names alone."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, names)).encode()).digest()[:7], "big")


def generator(*names: object) -> torch.Generator:
    """A random stream that depends on the names of its purpose alone (a seed first), not on what was drawn before."""
    return torch.Generator().manual_seed(derive(*names))
