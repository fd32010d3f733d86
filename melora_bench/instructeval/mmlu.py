"""MMLU, Hendrycks et al. 2021, https://arxiv.org/abs/2009.03300: multiple choice in 57 subjects."""

import csv
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from melora_bench.external.reading import is_text, reading
from melora_bench.instructeval.base import Benchmark, Question, Subject
from melora_bench.instructeval.question_files import read_parquet, text_of

LETTERS = "ABCD"


@dataclass(kw_only=True)
class MMLU(Benchmark):
    """The letter of the right choice after the subject's first `shots` dev rows."""

    label: ClassVar[str] = "MMLU"
    rule: ClassVar[str] = 'test rows; choices are read as text, so that "None" and "NA" stay as they stand'
    hub_files: ClassVar[list[str]] = ["all/dev*", "all/test*"]

    def read_hub(self, folder: Path) -> tuple[list[Subject], list[Path]]:
        """cais/mmlu: `choices` is a list of four texts, `answer` the index of the right one."""
        splits: dict[str, dict[str, list]] = {"dev": {}, "test": {}}
        files = []
        for split, rows_of in splits.items():
            rows, paths = read_parquet(folder, "all", split, ["question", "subject", "choices", "answer"])
            files += paths
            for number, row in enumerate(rows):
                place = f"{paths[0].parent}: row {number} of {split}"
                if type(row["answer"]) is not int or row["answer"] not in range(4):
                    raise ValueError(f"{place}: answer is {reprlib.repr(row['answer'])}, not 0 to 3")
                if not isinstance(row["choices"], list):
                    raise ValueError(f"{place}: choices is {reprlib.repr(row['choices'])}, not a list")
                cells = [text_of(row, "question", place), *row["choices"], LETTERS[row["answer"]]]
                rows_of.setdefault(text_of(row, "subject", place), []).append(_checked(cells, place))
        names = sorted(splits["test"])
        return [self._subject(name, splits["dev"].get(name, []), splits["test"][name]) for name in names], files

    def read_original(self, folder: Path) -> tuple[list[Subject], list[Path]]:
        """{dev,test}/<subject>_{dev,test}.csv without a header: question, four choices, letter."""
        tests = sorted(folder.glob("test/*_test.csv"))
        if not tests:
            raise ValueError(f"{folder} has no test/<subject>_test.csv")
        subjects, files = [], []
        for test in tests:
            name = test.name.removesuffix("_test.csv")
            dev = folder / "dev" / f"{name}_dev.csv"
            if not dev.is_file():
                raise ValueError(f"{folder} has no dev/{dev.name}, which holds the shots of {name}")
            subjects.append(self._subject(name, _read_csv(dev), _read_csv(test)))
            files += [dev, test]
        return subjects, files

    def _subject(self, name: str, dev: list[list[str]], test: list[list[str]]) -> Subject:
        # Two spaces before the subject, as the original script has them.
        header = f"The following are multiple choice questions (with answers) about  {name.replace('_', ' ')}.\n\n"
        shots = [f"{_text(row)} {row[5]}\n\n" for row in dev[: self.shots]]
        questions = [Question(text=_text(row), target=row[5]) for row in test]
        return Subject(name=name, header=header, shots=shots, questions=questions)


def _text(row: list[str]) -> str:
    choices = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, row[1:5], strict=True)]
    return "\n".join([row[0], *choices, "Answer:"])


def _read_csv(path: Path) -> list[list[str]]:
    with reading(path), path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))
    return [_checked(row, f"{path}: row {number}") for number, row in enumerate(rows) if row]


def _checked(cells: list, place: str) -> list[str]:
    """Question, four choices and letter, or a ValueError."""
    if len(cells) != 6:
        raise ValueError(f"{place} has {len(cells) - 2} choices, not four between a question and a letter")
    if cells[5] not in list(LETTERS):
        raise ValueError(
            f"{place}: the answer is {reprlib.repr(cells[5])}, not A, B, C or D: these files have no header line"
        )
    if not all(map(is_text, cells)):
        raise ValueError(f"{place}: a choice is not a text: {reprlib.repr(cells[1:5])}")
    return cells
