"""Files written whole, claims, hashes, canonical JSON, and the user's cache directory."""

import contextlib
import errno
import functools
import glob
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from safetensors import SafetensorError

log = logging.getLogger(__name__)

DAY = 86400  # seconds
PACKAGE = Path(__file__).resolve().parent
IN_CHECKOUT = (PACKAGE.parent / "configs" / "train.yaml").is_file()
# Where results/ and docs/ are: the checkout, or of an installed package the working directory.
ROOT = PACKAGE.parent if IN_CHECKOUT else Path()
# An installed package brings copies of these.
CONFIGS = ROOT / "configs" if IN_CHECKOUT else PACKAGE / "configs"
PUBLISHED = ROOT / "results" / "published" if IN_CHECKOUT else PACKAGE / "published"


def write_atomic(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write(temporary)` make the file, then rename it to `path`: a reader sees the whole file or none, after a
    power cut too. Its mode is what the umask leaves of 0666. Raises OSError, naming `path`, otherwise."""
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL, 0o666))
        return _filled(temporary, write, path)


def write_folder(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write(temporary)` fill a folder, then rename it to `path`, which may exist if it is empty. Modes and errors
    are those of `write_atomic`."""
    with _naming(path):
        there = next(parent for parent in path.absolute().parents if parent.exists())
        sweep(there.glob(f".{glob.escape(path.name)}.*"), older=DAY)
        temporary = _temporary(there / path.name)
        temporary.mkdir()
        return _filled(temporary, write, path)


def _filled(temporary: Path, write: Callable[[Path], object], path: Path) -> Path:
    """Let `write` fill a file or folder that was just made, and rename it to `path`, or remove it."""
    try:
        mode = temporary.stat().st_mode & 0o777
        write(temporary)
        for part in [*temporary.rglob("*"), temporary]:
            part.chmod(mode if part.is_dir() else mode & 0o666)  # a library may have made it with another mode
            _sync(part)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
    _sync(path.parent)
    return path


def sweep(leftovers: Iterable[Path], *, older: float = 0) -> None:
    """Remove files and folders that nobody writes any more, those that are at least `older` seconds old."""
    for path in leftovers:
        with contextlib.suppress(OSError):  # another user's, say: it is in nobody's way
            if time.time() - path.stat().st_mtime >= older:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """What goes wrong while `path` is written, as an OSError of that name; libraries raise errors of their own."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error
    except (RuntimeError, SafetensorError) as error:
        raise OSError(errno.EIO, " ".join(str(error).split()), str(path)) from error


def reason(error: OSError) -> str:
    """In words for a person: what could not be had, and why."""
    why = error.strerror or " ".join(str(error).split())
    return f"{error.filename}: {why}" if error.filename else why


def _sync(path: Path) -> None:
    """Wait until a file's contents, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # some file systems have no fsync of a folder
            raise
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> Path:
    return write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def owner(path: Path) -> str:
    try:
        return path.owner()
    except KeyError:  # a container's files, of a user whom it does not know
        return f"user {path.stat().st_uid}"


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
    """$MELORA_BENCH_CACHE, else `melora_bench` in the user's cache directory; holds embedded files and tokenised data.
    A user without a home has it among the temporary files."""
    if folder := os.environ.get("MELORA_BENCH_CACHE"):
        return Path(home(folder))
    base = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return base / "melora_bench" if base.is_absolute() else _homeless()


@functools.cache  # one warning
def _homeless() -> Path:
    folder = Path(tempfile.gettempdir(), f"melora_bench-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise ValueError(f"{folder} belongs to {owner(folder)}: set MELORA_BENCH_CACHE to a folder of your own")
    log.warning("neither HOME nor MELORA_BENCH_CACHE is set: downloads and tokens are kept in %s", folder)
    return folder


def home(argument: str) -> str:
    """A path, or an option `key=path`, its leading `~/` made the user's home, inside quotes too; others as they are."""
    match = re.match(r"([^=~'\"]*=)?['\"]?(?=~(/|['\"]?$))", argument)
    return argument[: match.end()] + os.path.expanduser("~") + argument[match.end() + 1 :] if match else argument


@functools.cache
def options(group: str) -> frozenset[str]:
    """The names that a config group has on this machine: `melora`, or `melora/mrpc` in a folder."""
    folder = CONFIGS / group
    return frozenset(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
