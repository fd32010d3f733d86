"""Files written whole, claims, hashes, canonical JSON, and the user's cache directory."""

import contextlib
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout


def write_atomic(path: Path, write: Callable[[Path], None]) -> Path:
    """Let `write(temporary)` make the file, then rename it to `path`: a reader sees the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_folder(path: Path, write: Callable[[Path], None]) -> Path:
    """Let `write(temporary)` fill a folder, then rename it to `path`, which may exist if it is empty."""
    there = next(parent for parent in path.absolute().parents if parent.exists())
    temporary = Path(tempfile.mkdtemp(dir=there, prefix=f".{path.name}."))
    try:
        write(temporary)
        temporary.chmod(0o755)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def write_text(path: Path, text: str) -> Path:
    return write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


@contextlib.contextmanager
def claimed(lock: Path, wait: float = 1.0) -> Iterator[bool]:
    """Whether this process may do the work that `lock` stands for: False while another does. A dead process holds nothing.

    The short wait lets one pass who holds it for an instant to see whether it can (`Point.state`).
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(lock, fallback_to_soft=False).acquire(timeout=wait)
    except Timeout:
        yield False
        return
    with held:
        yield True


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_once(path: Path) -> str:
    """`sha256_file` of a large file, read again only when its size or time of change differ from those seen before."""
    state = path.stat()
    return _sha256(path.resolve(), state.st_size, state.st_mtime_ns, state.st_ino)


@functools.cache
def _sha256(path: Path, *state: int) -> str:
    return sha256_file(path)


def canonical_json(value: object) -> str:
    """Raises ValueError for a number that is not finite, as JSON has none."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_json(value: object) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def cache_dir() -> Path:
    """$MELORA_BENCH_CACHE, else the user's cache directory; holds embedded files and tokenised data."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("MELORA_BENCH_CACHE") or Path(base) / "melora_bench")
