"""What a model is asked: which questions, their exact prompts, and these prompts in a file."""

import json
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from melora_bench.files import sha256_json, write_text
from melora_bench.instructeval.base import Benchmark, Prompt, Question, Questions

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SubjectPrompts:
    """The questions of one subject that are asked, and the prompt of each."""

    subject: str
    questions: list[Question]
    prompts: list[Prompt]

    def rows(self) -> list[dict]:
        """What is stored of each question before it is answered."""
        return [
            {"prompt": prompt.text, "target": question.target, "shots": prompt.shots, "tokens": prompt.tokens}
            for prompt, question in zip(self.prompts, self.questions, strict=True)
        ]


def choose(loaded: Questions, limit: int | None) -> dict[str, list[Question]]:
    """{subject: its questions to score}: all, or `limit` in all, dealt out one per subject and round in the subjects'
    order.

    A subject gives its first questions; one that has no more is passed over. Raises ValueError for a limit below 1.
    """
    if limit is None:
        return {subject.name: subject.questions for subject in loaded.subjects}
    if limit < 1:
        raise ValueError(f"limit={limit} leaves no question: give a number above 0, or null for all")
    longest = max(len(subject.questions) for subject in loaded.subjects)
    rounds = [s.name for turn in range(longest) for s in loaded.subjects if turn < len(s.questions)]
    counts = Counter(rounds[:limit])
    return {s.name: s.questions[: counts[s.name]] for s in loaded.subjects if counts[s.name]}


def prompts_of(
    benchmark: Benchmark, loaded: Questions, limit: int | None, tokenizer: PreTrainedTokenizerBase | None
) -> list[SubjectPrompts]:
    """The prompts of the chosen questions, in the subjects' order. Raises ValueError as `choose` does."""
    chosen = choose(loaded, limit)
    return [
        SubjectPrompts(
            subject=subject.name,
            questions=chosen[subject.name],
            prompts=[benchmark.prompt(subject, question, tokenizer) for question in chosen[subject.name]],
        )
        for subject in loaded.subjects
        if subject.name in chosen
    ]


def examples_hash(loaded: Questions, asked: list[SubjectPrompts]) -> str:
    """sha256 of what was asked, whatever the tokenizer: headers, shots, questions, targets and details."""
    questions = {each.subject: each.questions for each in asked}
    return sha256_json(
        [
            [s.name, s.header, s.shots, [[q.text, q.target, q.details] for q in questions[s.name]]]
            for s in loaded.subjects
            if s.name in questions
        ]
    )


def write_prompts(
    benchmark: Benchmark,
    loaded: Questions,
    path: Path,
    *,
    limit: int | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> int:
    """Write the exact prompts as JSON lines (subject, prompt, target, shots, tokens); returns how many.

    Without a tokenizer no shot is dropped, tokens is null, and a log line says so.
    """
    if tokenizer is None:
        log.info("%s: no tokenizer, so tokens are not counted and no shot is dropped", benchmark.name)
    rows = [
        {"subject": each.subject, **row}
        for each in prompts_of(benchmark, loaded, limit, tokenizer)
        for row in each.rows()
    ]
    write_text(path, "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n")
    return len(rows)
