"""Asking a model a benchmark's questions: answers are read where they are stored, else written, stored and scored."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase

from melora_bench.files import sha256_json
from melora_bench.instructeval.answers import SubjectFile
from melora_bench.instructeval.base import Benchmark, Questions
from melora_bench.instructeval.generate import check_room, generate
from melora_bench.instructeval.language_model import language_model
from melora_bench.instructeval.prompts import SubjectPrompts, examples_hash, prompts_of
from melora_bench.instructeval.summary import Summary, summarise
from melora_bench.training.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How a model is asked, and where its answers are kept: `<folder>/<benchmark>/<subject>.jsonl.gz`."""

    folder: Path
    # Names the model in these files (JSON values).
    identity: dict
    # Questions in all (see `choose`).
    limit: int | None
    batch_size: int
    seed: int
    # Whether a program ends well; for benchmarks that run what the model wrote.
    execute: Callable[[str], bool]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A model's numbers, the sha256 of what was asked, and how many questions were asked now, in how many seconds."""

    summary: Summary
    examples_sha256: str
    asked: int
    seconds: float


def evaluate(
    benchmark: Benchmark, loaded: Questions, model: nn.Module, tokenizer: PreTrainedTokenizerBase, asking: Asking
) -> Evaluation:
    """Score a model. Every prompt, output, target and score is stored when its subject is done; a subject whose file is
    there is not asked again.

    Raises ValueError, before anything is written, for a model that cannot generate, a prompt that leaves no room, and a
    file that holds the outputs of another model, setting or set of questions.
    """
    writer = language_model(model)
    subjects = prompts_of(benchmark, loaded, asking.limit, tokenizer)
    longest = max(prompt.tokens or 0 for each in subjects for prompt in each.prompts)
    check_room(writer, longest, benchmark.max_new_tokens)
    files = {each.subject: _file(benchmark, each, asking) for each in subjects}
    stored = {name: file.read() for name, file in files.items()}
    rows = {name: each for name, each in stored.items() if each is not None}
    missing = [each for each in subjects if each.subject not in rows]
    asked, started = sum(len(each.questions) for each in missing), time.perf_counter()
    progress = Progress(
        benchmark.label, asked, lambda left: f"{progress.done}/{asked} questions, in {progress.note}, {left}"
    )
    with progress:

        def write(prompts: list[str]) -> list[str]:
            return generate(
                model,
                tokenizer,
                prompts,
                max_new_tokens=benchmark.max_new_tokens,
                batch_size=asking.batch_size,
                temperature=benchmark.temperature,
                seed=asking.seed,
                on_batch=progress.advance,
            )

        for each in missing:
            progress.note = each.subject
            file = files[each.subject]
            outputs = _kept(file.unscored, progress) or _written(each, file.unscored, write, keep=benchmark.executes)
            rows[each.subject] = _scored(benchmark, each, outputs, asking.execute)
            file.write(rows[each.subject])
            file.unscored.remove()
    return Evaluation(
        summary=summarise(benchmark.average, {each.subject: rows[each.subject] for each in subjects}),
        examples_sha256=examples_hash(loaded, subjects),
        asked=asked,
        seconds=time.perf_counter() - started,
    )


def _file(benchmark: Benchmark, each: SubjectPrompts, asking: Asking) -> SubjectFile:
    """The file of a subject's answers, under the header that they must have."""
    header = {
        "benchmark": benchmark.name,
        "subject": each.subject,
        "version": benchmark.version,
        "max_new_tokens": benchmark.max_new_tokens,
        "identity": asking.identity,
    }
    if benchmark.temperature > 0:
        header |= {"temperature": benchmark.temperature, "seed": asking.seed}
    path = asking.folder / benchmark.name / f"{each.subject}.jsonl.gz"
    return SubjectFile.of(path, header | {"sha256": sha256_json(each.rows())})


def _kept(unscored: SubjectFile, progress: Progress) -> list[str]:
    """The outputs of a start that ended before their programs had run; empty without one."""
    outputs = [row["output"] for row in unscored.read() or []]
    if outputs:
        progress.advance(len(outputs))
    return outputs


def _written(
    each: SubjectPrompts, unscored: SubjectFile, write: Callable[[list[str]], list[str]], *, keep: bool
) -> list[str]:
    """The model's outputs. keep: store them before they are scored, as scoring may fail."""
    outputs = write([prompt.text for prompt in each.prompts])
    if keep:
        unscored.write([{"output": output} for output in outputs])
    return outputs


def _scored(
    benchmark: Benchmark, each: SubjectPrompts, outputs: list[str], execute: Callable[[str], bool]
) -> list[dict]:
    """The rows to store, and to average: prompt, target, shots, tokens, output and scores of each question."""
    return [
        {**row, "output": output, **benchmark.score(question, output, execute)}
        for row, question, output in zip(each.rows(), each.questions, outputs, strict=True)
    ]
