"""What the four benchmarks share: subjects of questions with shots, the prompt that fits, prefix and exact match.

Protocol: https://github.com/declare-lab/instruct-eval (Chia et al. 2023, https://arxiv.org/abs/2306.04757).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from transformers import PreTrainedTokenizerBase

from melora_bench.external.hub import hub_snapshot
from melora_bench.files import sha256_file, sha256_json
from melora_bench.tasks.splits import unended

OFFLINE = "offline, give a folder with a copy of it, or of the original files"


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question that is scored."""

    text: str  # the end of its prompt, after the subject's header and shots
    target: str
    details: dict[str, str] = field(default_factory=dict)  # what else scoring needs


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Questions that share a header and shots, and get a score of their own."""

    name: str
    header: str
    shots: list[str]  # each a question, its answer and a blank line
    questions: list[Question]


@dataclass(frozen=True, kw_only=True)
class Questions:
    """The subjects of one benchmark, in a fixed order, and what to record of their origin."""

    subjects: list[Subject]
    origin: dict  # label, rule, files, sha256, repo and commit


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What the model reads."""

    text: str
    shots: int  # how many were left in
    tokens: int | None  # with what the tokenizer adds (BOS); None without a tokenizer


@dataclass(kw_only=True)
class Benchmark:
    """One benchmark. Its fields are the keys of configs/benchmark/<name>.yaml."""

    version: int  # raised when a code change changes numbers
    name: str
    repo: str  # the hub's dataset
    revision: str
    subjects: int  # how many a complete copy has; another number is refused
    shots: int
    max_new_tokens: int
    context: int  # tokens that a prompt may have before its last shot is dropped
    average: str  # micro: over questions; macro: over subjects
    temperature: float  # 0: greedy

    label: ClassVar[str]  # what tables call the scores
    rule: ClassVar[str]  # which questions are scored, and how they are read
    hub_files: ClassVar[list[str]]  # patterns of what is needed of the hub's files
    executes: ClassVar[bool] = False  # whether scoring runs what the model wrote

    def read(self, root: str | None = None) -> Questions:
        """The questions of the folder `<root>/<name>`, or, if root is None, of the hub.

        A folder holds the hub's parquet files or the original ones. Raises ValueError naming the file for a missing
        folder or file, an unreadable one, a malformed row, a missing subject, and a subject without questions.
        """
        if self.average not in ("micro", "macro"):
            raise ValueError(f"{self.name}: average={self.average!r} must be micro or macro")
        place: dict[str, str | None]
        if root is None:
            folder, commit = hub_snapshot(
                self.repo, self.revision, kind="dataset", patterns=self.hub_files, offline=OFFLINE
            )
            place = {"repo": self.repo, "commit": commit}
        else:
            folder, place = Path(root) / self.name, {}
            if not folder.is_dir():
                raise ValueError(f"{root} has no folder {self.name}/ with the files of {self.label}")
        from_hub = root is None or any(folder.rglob("*.parquet"))
        subjects, files = self.read_hub(folder) if from_hub else self.read_original(folder)
        self._check(subjects, folder)
        hashes = {str(path.relative_to(folder)): sha256_file(path) for path in files}
        origin = {**self.describe(from_hub), "files": len(files), "sha256": sha256_json(hashes), **place}
        return Questions(subjects=subjects, origin=origin)

    def read_hub(self, folder: Path) -> tuple[list[Subject], list[Path]]:
        """The subjects from the hub's parquet files, and the files read."""
        raise NotImplementedError

    def read_original(self, folder: Path) -> tuple[list[Subject], list[Path]]:
        """The same from the files as their authors published them."""
        raise NotImplementedError

    def describe(self, from_hub: bool) -> dict[str, str]:
        return {"label": self.label, "rule": self.rule}

    def prompt(self, subject: Subject, question: Question, tokenizer: PreTrainedTokenizerBase | None = None) -> Prompt:
        """Header, shots and question; the last shot goes while there are more than `context` tokens.

        Without shots it is as long as it is. Without a tokenizer no shot is dropped.
        """
        for shots in range(self.shots, -1, -1):
            text = "".join([subject.header, *subject.shots[:shots], question.text])
            tokens = None if tokenizer is None else len(unended(tokenizer, [text])[0])
            if tokens is None or tokens <= self.context:
                break
        return Prompt(text=text, shots=shots, tokens=tokens)

    def score(self, question: Question, output: str, execute: Callable[[str], bool]) -> dict:
        """{score, exact}. score: the protocol's, whether the stripped output starts with the target; exact: whether its
        first line is the target.

        Prefix match takes "None" for "No" and "10" for "1". `execute` is for benchmarks that run what was written.
        """
        written = output.strip()
        first_line = written.partition("\n")[0].strip()
        return {"score": written.startswith(question.target), "exact": first_line == question.target.strip()}

    def check_numbers(self) -> None:
        """Raises ValueError for a value that cannot be, whatever its type."""
        for key, least in {"shots": 0, "max_new_tokens": 1, "context": 1}.items():
            if (value := getattr(self, key)) < least:
                raise ValueError(f"benchmark.{key}={value} must be a whole number from {least} on")
        if self.temperature < 0:
            raise ValueError(f"benchmark.temperature={self.temperature} must be a number from 0 on")

    def _check(self, subjects: list[Subject], folder: Path) -> None:
        for subject in subjects:
            if len(subject.shots) != self.shots:
                raise ValueError(
                    f"{folder}: {subject.name} has {len(subject.shots)} of the {self.shots} rows that are shots"
                )
            if not subject.questions:
                raise ValueError(f"{folder}: {subject.name} has no question to score: is the file complete?")
        if len(subjects) != self.subjects:
            counts = f"{len(subjects)} of the {self.subjects} subjects of {self.label}"
            raise ValueError(f"{folder} has {counts}: the average over another set would be another number")
