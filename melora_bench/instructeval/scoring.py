"""Running a benchmark: which questions, every output stored subject by subject, the scores, and resuming."""

import gzip
import itertools
import json
import logging
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from melora_bench.files import canonical_json, sha256_json, write_atomic, write_text
from melora_bench.instructeval.base import Benchmark, Prompt, Question, Questions, read_jsonl_gz
from melora_bench.instructeval.generate import check_model, check_room, generate
from melora_bench.training.progress import Progress

log = logging.getLogger(__name__)


def choose(loaded: Questions, limit: int | None) -> dict[str, list[Question]]:
    """{subject: its questions to score}: all, or `limit` in all, dealt out one per subject and round in the subjects' order.

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


def write_prompts(
    benchmark: Benchmark, loaded: Questions, path: Path, *, tokenizer=None, limit: int | None = None
) -> int:
    """Write the exact prompts as JSON lines (subject, prompt, target, shots, tokens); returns how many.

    Without a tokenizer no shot is dropped, tokens is null, and a log line says so.
    """
    if tokenizer is None:
        log.info("%s: no tokenizer, so tokens are not counted and no shot is dropped", benchmark.name)
    chosen, lines = choose(loaded, limit), []
    for subject in loaded.subjects:
        for question in chosen.get(subject.name, []):
            prompt = benchmark.prompt(subject, question, tokenizer)
            lines.append(json.dumps({"subject": subject.name, **_row(prompt, question)}, ensure_ascii=False))
    write_text(Path(path), "\n".join(lines) + "\n")
    return len(lines)


def evaluate(
    benchmark: Benchmark,
    loaded: Questions,
    model,
    tokenizer,
    folder: str | Path,
    *,
    identity: dict,
    limit: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
    execute: Callable[[str], bool] | None = None,
) -> dict:
    """Score a model; returns the average, the subjects' scores, what they were measured on, and how many questions were asked
    now, in how many seconds.

    Every prompt, output, target and score is stored in `<folder>/<benchmark>/<subject>.jsonl.gz` when its subject is done;
    a subject whose file is there is not run again. `identity` names the model in these files (JSON values). `limit` is the
    number of questions in all (see `choose`). `execute(program)` says whether a program ended well (HumanEval).

    Raises ValueError, before anything is written, for a model that cannot generate, a prompt that leaves no room, a missing
    `execute`, and a file that holds the outputs of another model, setting or set of questions.
    """
    if benchmark.executes and execute is None:
        raise ValueError(f"{benchmark.name} runs what the model wrote: it needs an execute(program) to do so")
    check_model(model)
    chosen = choose(loaded, limit)
    subjects = [subject for subject in loaded.subjects if subject.name in chosen]
    prompts = {s.name: [benchmark.prompt(s, question, tokenizer) for question in chosen[s.name]] for s in subjects}
    longest = max(prompt.tokens for each in prompts.values() for prompt in each)
    check_room(model, longest, benchmark.max_new_tokens)

    settings = {"version": benchmark.version, "max_new_tokens": benchmark.max_new_tokens, "identity": identity}
    if benchmark.temperature > 0:
        settings |= {"temperature": benchmark.temperature, "seed": seed}
    headers, paths, rows = {}, {}, {}
    for name, questions in chosen.items():
        texts = [_row(prompt, question) for prompt, question in zip(prompts[name], questions, strict=True)]
        header = {"benchmark": benchmark.name, "subject": name, **settings, "sha256": sha256_json(texts)}
        headers[name] = json.loads(json.dumps(header))  # as it is read back
        paths[name] = Path(folder) / benchmark.name / f"{name}.jsonl.gz"
        if paths[name].exists():
            rows[name] = _stored(paths[name], headers[name])

    missing = [name for name in chosen if name not in rows]
    asked, started = sum(len(chosen[name]) for name in missing), time.perf_counter()
    progress = Progress(
        benchmark.label, asked, lambda left: f"{progress.done}/{asked} questions, in {progress.note}, {left}"
    )
    with progress:
        for name in missing:
            progress.note = name
            written = paths[name].with_name(f"{name}.unscored.jsonl.gz")  # kept until the programs in it have run
            if written.exists():
                outputs = [row["output"] for row in _stored(written, headers[name])]
                progress.advance(len(outputs))
            else:
                outputs = generate(
                    model,
                    tokenizer,
                    [prompt.text for prompt in prompts[name]],
                    max_new_tokens=benchmark.max_new_tokens,
                    batch_size=batch_size,
                    temperature=benchmark.temperature,
                    seed=seed,
                    on_batch=progress.advance,
                )
                if benchmark.executes:
                    _store(written, [headers[name], *({"output": output} for output in outputs)])
            rows[name] = [
                {**_row(prompt, question), "output": output, **benchmark.score(question, output, execute)}
                for prompt, question, output in zip(prompts[name], chosen[name], outputs, strict=True)
            ]
            _store(paths[name], [headers[name], *rows[name]])
            written.unlink(missing_ok=True)
    rows = {name: rows[name] for name in chosen}
    return {
        "benchmark": benchmark.name,
        "version": benchmark.version,
        "data": loaded.origin,
        "limit": limit,
        "asked": asked,
        "seconds": time.perf_counter() - started,
        "examples_sha256": _examples_hash(loaded, chosen),
        "halves": [half["score"] for half in _halves(benchmark, rows)],
        **summarise(benchmark, rows),
    }


def _halves(benchmark: Benchmark, rows: dict[str, list[dict]]) -> list[dict]:
    """The summaries of every other question, and of the rest; of a single question twice the same."""
    places = itertools.count()
    numbered = {name: [(next(places), row) for row in each] for name, each in rows.items()}
    parts = [{name: kept for name, each in numbered.items() if (kept := [row for i, row in each if i % 2 == half])}
             for half in (0, 1)]  # fmt: skip
    return [summarise(benchmark, part or rows) for part in parts]


def summarise(benchmark: Benchmark, rows: dict[str, list[dict]]) -> dict:
    """Averages in percent over {subject: rows}: `score` (the protocol's), `exact`, and `ceiling` where there is one.

    `tampering`, where rows have it: how many passes contain what lets wrong programs pass.
    """
    keys = [key for key in ("score", "exact", "ceiling") if any(key in row for each in rows.values() for row in each)]

    def mean(key: str, each: list[dict]) -> float | None:
        return None if any(row[key] is None for row in each) else 100 * statistics.fmean(row[key] for row in each)

    subjects = {name: {"questions": len(each)} | {key: mean(key, each) for key in keys} for name, each in rows.items()}
    everything = [row for each in rows.values() for row in each]
    averages = {}
    for key in keys:
        values = [subject[key] for subject in subjects.values()]
        macro = benchmark.average == "macro" and None not in values
        averages[key] = statistics.fmean(values) if macro else mean(key, everything)
    shots = Counter(row["shots"] for row in everything)
    counted = {"tampering": sum(bool(row["tampering"]) for row in everything)} if "tampering" in everything[0] else {}
    return {
        "average": benchmark.average,
        "questions": len(everything),
        **averages,
        "shots": {
            str(number): shots[number] for number in sorted(shots, reverse=True)
        },  # how many questions had so many
        "subjects": subjects,
        **counted,
    }


def _row(prompt: Prompt, question: Question) -> dict:
    return {"prompt": prompt.text, "target": question.target, "shots": prompt.shots, "tokens": prompt.tokens}


def _examples_hash(loaded: Questions, chosen: dict[str, list[Question]]) -> str:
    """sha256 of what was asked, whatever the tokenizer: headers, shots, questions, targets and details."""
    return sha256_json([
        [s.name, s.header, s.shots, [[q.text, q.target, q.details] for q in chosen[s.name]]]
        for s in loaded.subjects if s.name in chosen
    ])  # fmt: skip


def _stored(path: Path, header: dict) -> list[dict]:
    """The rows of a finished subject, or a ValueError if they are not this model's, setting's and questions'."""
    found, *rows = read_jsonl_gz(path) or [{}]
    differing = [key for key in header if found.get(key) != header[key]]
    if differing:
        key = differing[0]
        what = "other prompts or targets" if key == "sha256" else f"{key}={canonical_json(found.get(key))[:80]}"
        raise ValueError(f"{path} holds the outputs of another run ({what}): give another folder, or delete the file")
    return rows


def _store(path: Path, rows: list[dict]) -> None:
    def write(temporary: Path) -> None:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with temporary.open("wb") as raw, gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as file:
            file.write(text.encode())

    write_atomic(path, write)
