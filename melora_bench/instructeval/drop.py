"""DROP, Dua et al. 2019, https://arxiv.org/abs/1903.00161: questions on passages that need a count, a sum, an order."""

import random
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from melora_bench.external.reading import is_text
from melora_bench.instructeval.base import Benchmark, Question, Subject
from melora_bench.instructeval.question_files import read_jsonl_gz, read_parquet, text_of

PASSAGE, QUESTION, ANSWER = "Passage: ", "\nQuestion: ", "\nAnswer:"  # around the parts of the local file's context


@dataclass(kw_only=True)
class DROP(Benchmark):
    """Shots are drawn from the rows with a single answer; rows that share a passage with a shot are not scored."""

    shots_seed: int

    label: ClassVar[str] = "DROP"
    rule: ClassVar[str] = "validation rows whose answers, stripped, are one distinct text, without the shots' passages"
    local_rule: ClassVar[str] = (
        'rows of a file that joins alternatives by "|" and spans by " and ": one distinct alternative, stripped, '
        "without \" and \" in it, without the shots' passages; not comparable with scores on the hub's data"
    )
    hub_files: ClassVar[list[str]] = ["*/validation*"]

    def describe(self, from_hub: bool) -> dict[str, str]:
        return super().describe(True) if from_hub else {"label": "local DROP", "rule": self.local_rule}

    def read_hub(self, folder: Path) -> tuple[list[Subject], list[Path]]:
        """ucinlp/drop: answers_spans holds the spans, numbers and dates of all annotators, flattened."""
        rows, files = read_parquet(folder, "*", "validation", ["passage", "question", "answers_spans"])
        kept = []
        for number, row in enumerate(rows):
            place = f"{files[0].parent}: row {number}"
            spans = row["answers_spans"].get("spans") if isinstance(row["answers_spans"], dict) else None
            if not isinstance(spans, list) or not all(map(is_text, spans)):
                value = reprlib.repr(row["answers_spans"])
                raise ValueError(f"{place}: answers_spans is {value}, without a list of spans")
            answers = {span.strip() for span in spans}
            if len(answers) == 1:
                kept.append((text_of(row, "passage", place), text_of(row, "question", place), answers.pop()))
        return [self._subject(kept, files[0])], files

    def read_original(self, folder: Path) -> tuple[list[Subject], list[Path]]:
        """drop_v0_dev.jsonl.gz: {"context": passage and question, "ref_text": joined answers}; see `local_rule`."""
        path = folder / "drop_v0_dev.jsonl.gz"
        kept = []
        for number, row in enumerate(read_jsonl_gz(path)):
            place = f"{path}: row {number}"
            context = text_of(row, "context", place)
            passage, separator, question = context.removesuffix(ANSWER).rpartition(QUESTION)
            if not (separator and passage.startswith(PASSAGE) and context.endswith(ANSWER)):
                raise ValueError(f"{place}: context is not {PASSAGE!r}...{QUESTION!r}...{ANSWER!r}")
            answers = {answer.strip() for answer in text_of(row, "ref_text", place).split("|")}
            if len(answers) == 1 and " and " not in (answer := answers.pop()):
                kept.append((passage.removeprefix(PASSAGE), question, answer))
        return [self._subject(kept, path)], [path]

    def _subject(self, rows: list[tuple[str, str, str]], path: Path) -> Subject:
        """rows: (passage, question, answer) of every row that could be scored."""
        if len(rows) <= self.shots:
            raise ValueError(f"{path} has {len(rows)} rows with a single answer, too few for {self.shots} shots")
        drawn = random.Random(self.shots_seed).sample(rows, self.shots)
        passages = {passage for passage, _, _ in drawn}
        shots = [f"{_text(passage, question)} {answer}\n\n" for passage, question, answer in drawn]
        questions = [
            Question(text=_text(passage, question), target=answer)
            for passage, question, answer in rows
            if passage not in passages
        ]
        return Subject(name="drop", header="", shots=shots, questions=questions)


def _text(passage: str, question: str) -> str:
    return f"{passage.strip()} {question.strip()}{ANSWER}"
