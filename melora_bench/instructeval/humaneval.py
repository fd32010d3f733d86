"""HumanEval, Chen et al. 2021, https://arxiv.org/abs/2107.03374:
164 Python functions to complete, judged by their tests."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from melora_bench.instructeval.base import Benchmark, Question, Subject
from melora_bench.instructeval.question_files import read_jsonl_gz, read_parquet, text_of
from melora_bench.instructeval.sandbox.tampering import tampering

INSTRUCTION = (
    "Please complete the following Python code without providing any additional tasks such as testing or explanations\n"
)
COLUMNS = ["task_id", "prompt", "canonical_solution", "test", "entry_point"]


@dataclass(kw_only=True)
class HumanEval(Benchmark):
    """One sample per problem. Some functions cannot pass after `completion` cut them; the result gives that ceiling."""

    label: ClassVar[str] = "HumanEval"
    rule: ClassVar[str] = "one sample per problem; ceiling: the authors' own solutions after the same cut"
    hub_files: ClassVar[list[str]] = ["*/test*"]
    executes: ClassVar[bool] = True

    def read_hub(self, folder: Path) -> tuple[list[Subject], list[Path]]:
        """openai/openai_humaneval, in the columns of the original file."""
        rows, files = read_parquet(folder, "*", "test", COLUMNS)
        return [_subject(rows, files[0])], files

    def read_original(self, folder: Path) -> tuple[list[Subject], list[Path]]:
        """HumanEval.jsonl.gz."""
        path = folder / "HumanEval.jsonl.gz"
        return [_subject(read_jsonl_gz(path), path)], [path]

    def score(self, question: Question, output: str, execute: Callable[[str], bool]) -> dict:
        """score: whether the program passes its tests; ceiling: whether the canonical solution does after the same cut;
        tampering: what a passing program contains of that which lets wrong ones pass (see `tampering`).

        `execute(program)` runs a program and returns whether it ended well. There is no exact match: it is None.
        """
        body = completion(output)
        passed = execute(program(question, body))
        return {
            "score": passed,
            "exact": None,
            "ceiling": execute(program(question, completion(question.target))),
            "tampering": tampering(question.details["prompt"], body) if passed else [],
        }


def completion(output: str) -> str:
    """The part of an output that is run: indents padded to a multiple of 2 spaces, leading newlines off, cut at the
    first blank line.

    The order matters: only spaces count as indent, and a line of spaces does not cut.
    """
    lines = output.split("\n")
    padded = [" " * ((len(line) - len(line.lstrip(" "))) % 2) + line for line in lines]
    return "\n".join(padded).lstrip("\n").partition("\n\n")[0]


def program(question: Question, body: str) -> str:
    """The problem's own prompt, without the instruction, then the body, the tests and their call."""
    details = question.details
    return f"{details['prompt']}{body}\n{details['test']}\ncheck({details['entry_point']})\n"


def _subject(rows: list[dict], path: Path) -> Subject:
    questions = []
    for number, row in enumerate(rows):
        texts = {name: text_of(row, name, f"{path}: row {number}") for name in COLUMNS}
        target = texts.pop("canonical_solution")
        questions.append(Question(text=INSTRUCTION + texts["prompt"], target=target, details=texts))
    return Subject(name="humaneval", header="", shots=[], questions=questions)
