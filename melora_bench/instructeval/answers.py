"""What a model wrote, subject by subject on the disk:
a start that was interrupted goes on behind the last whole subject."""

import dataclasses
import gzip
import json
from dataclasses import dataclass
from pathlib import Path

from melora_bench.files import canonical_json, write_atomic
from melora_bench.instructeval.question_files import read_jsonl_gz


@dataclass(frozen=True, kw_only=True)
class SubjectFile:
    """The answers to one subject's questions: gzipped JSON lines, a header and then one row per question.

    The header says of what model, settings, prompts and targets the rows are.
    """

    path: Path
    header: dict

    @classmethod
    def of(cls, path: Path, header: dict) -> "SubjectFile":
        """header: of values that JSON has; kept as it is read back."""
        return cls(path=path, header=json.loads(json.dumps(header)))

    @property
    def unscored(self) -> "SubjectFile":
        """The outputs alone, kept until the programs in them have run."""
        path = self.path.with_name(self.path.name.removesuffix(".jsonl.gz") + ".unscored.jsonl.gz")
        return dataclasses.replace(self, path=path)

    def read(self) -> list[dict] | None:
        """The rows, or None without a file. Raises ValueError for rows of another header."""
        if not self.path.exists():
            return None
        header, *rows = read_jsonl_gz(self.path) or [{}]
        differing = [key for key in self.header if header.get(key) != self.header[key]]
        if differing:
            key = differing[0]
            what = "other prompts or targets" if key == "sha256" else f"{key}={canonical_json(header.get(key))[:80]}"
            raise ValueError(
                f"{self.path} holds the outputs of another run ({what}): give another folder, or delete the file"
            )
        return rows

    def write(self, rows: list[dict]) -> None:
        """Written whole, and byte for byte the same from the same rows: no time stands in it."""
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in [self.header, *rows])

        def write(temporary: Path) -> None:
            with temporary.open("wb") as raw, gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as file:
                file.write(text.encode())

        write_atomic(self.path, write)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
