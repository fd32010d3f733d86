"""Checkpoints, from which a run goes on after its last evaluation."""

import hashlib
import io
from pathlib import Path

import torch

from melora_bench.files import write_atomic

FORMAT = "melora_bench checkpoint 2"  # the first words of its file
CHECKPOINT = ("run", "part", "earlier", "trainer", "seconds", "resumed_at")


def save_checkpoint(path: Path, state: dict) -> None:
    """Write `state` behind a first line with its sha256."""
    content = io.BytesIO()
    torch.save(state, content)
    digest = hashlib.sha256(content.getbuffer()).hexdigest()

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(f"{FORMAT} {digest}\n".encode())
            file.write(content.getbuffer())

    write_atomic(path, write)


def load_checkpoint(path: Path) -> dict:
    """What `save_checkpoint` was given. Raises ValueError for a file that is not whole, to the last bit."""
    try:
        with path.open("rb") as file:
            first, content = file.readline(200).decode("ascii").strip(), file.read()
        if first != f"{FORMAT} {hashlib.sha256(content).hexdigest()}":
            raise ValueError("its contents do not match its first line")
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return {key: state[key] for key in CHECKPOINT}
    except Exception as error:  # torch raises what zipfile and pickle do
        raise ValueError(
            f"{path} is not a readable checkpoint ({str(error).partition(chr(10))[0]}); delete it to start that run "
            "again"
        ) from error
