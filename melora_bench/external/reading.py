"""Data files from elsewhere: whatever is wrong with one ends in a ValueError of one line that names it."""

import contextlib
import gzip
import json
import textwrap
from collections.abc import Iterator
from pathlib import Path

UNPACKED = 2**30  # bytes that a .gz may unpack to: far above any file of questions or instructions, below a memory


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever is raised while `path` is read, in a ValueError: gzip, json, csv, pandas and pyarrow each raise their
    own, and nested brackets RecursionError."""
    try:
        yield
    except Exception as error:
        cause = textwrap.shorten(str(error), 160, placeholder=" ...") or type(error).__name__
        kind = Path(path.name.removesuffix(".gz")).suffix[1:]
        raise ValueError(f"{path} cannot be read as {kind} ({cause}): is the file complete?") from error


def unpacked(path: Path) -> bytes:
    """The bytes of a file, or of what a .gz holds. Raises ValueError for more than UNPACKED of the latter."""
    if path.suffix != ".gz":
        return path.read_bytes()
    with gzip.open(path) as file:
        content = file.read(UNPACKED + 1)
    if len(content) > UNPACKED:
        raise ValueError(f"it unpacks to more than {UNPACKED / 2**20:,.0f} MiB")
    return content


def read_json(path: Path) -> object:
    """Raises ValueError naming the file."""
    with reading(path):
        return json.loads(unpacked(path).decode("utf-8-sig"))


def read_jsonl(path: Path) -> list:
    """The values of a file that has one per line. Raises ValueError naming file and line."""
    rows = []
    with reading(path):
        for number, line in enumerate(unpacked(path).decode("utf-8-sig").split("\n"), 1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"in line {number}: {error}") from error
    return rows


def is_text(value: object) -> bool:
    """Whether a tokenizer takes it: JSON can name half a character (\\ud800)."""
    return isinstance(value, str) and value.encode(errors="ignore").decode() == value
