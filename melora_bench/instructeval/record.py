"""From a model's numbers to the record of its score."""

from dataclasses import dataclass

import torch

from melora_bench.instructeval.evaluation import Evaluation
from melora_bench.instructeval.point import ScorePoint
from melora_bench.instructeval.summary import Summary
from melora_bench.records import provenance
from melora_bench.records.records import RunRecord


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What a score was made with, when, and how long it took."""

    # `origin` of the questions and of the backbone.
    questions: dict
    model: dict
    # Trained numbers, as `adapters.files.counts` has them.
    params: dict
    git: dict
    env: dict
    started: str
    wall_seconds: float


def record_of(point: ScorePoint, evaluation: Evaluation, made: Circumstances) -> RunRecord:
    """The record of a score that is finished now."""
    scored, count, asked = point.scored, evaluation.summary.questions, evaluation.asked
    return RunRecord(
        run_id=point.run_id,
        config_hash=point.hash,
        seed=scored.seed,
        packed_with=[],
        choices=point.choices,
        versions={"method": scored.config["method"]["version"], "task": point.benchmark.version},
        config=point.identity,
        git=made.git,
        env=made.env | {"batch_size": point.config.batch_size},
        model=made.model,
        data={"test": {**made.questions, "rows": count, "sha256": [made.questions["sha256"]]}},
        init_from=scored.init_from,
        params=made.params,
        metric="score",
        epochs=[entry(point, evaluation)],
        rows_per_second=round(asked / evaluation.seconds, 3) if asked else None,
        tokens_per_second=None,
        peak_memory_bytes=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        wall_seconds=round(made.wall_seconds, 3),
        resumed_at=[count - asked] if asked < count else [],
        started=made.started,
        finished=provenance.now(),
    )


def entry(point: ScorePoint, evaluation: Evaluation) -> dict:
    """The one evaluation of a score's record, with shares of 1 as its metrics."""
    summary = evaluation.summary
    return {
        **point.scored.at,
        "train_loss": None,
        "penalty": None,
        "lr": None,
        "metrics": {key: round(value / 100, 6) for key, value in scores(summary).items()},
        "halves": [{"score": round(value / 100, 6)} for value in summary.halves],
        "report": report(point, evaluation),
    }


def scores(summary: Summary) -> dict[str, float]:
    """The scores that were measured, in percent."""
    values = {"score": summary.score, "exact": summary.exact, "ceiling": summary.ceiling}
    return {key: value for key, value in values.items() if value is not None}


def report(point: ScorePoint, evaluation: Evaluation) -> dict:
    """What a record says of a score beside its metrics."""
    summary = evaluation.summary
    said = {
        "questions": summary.questions,
        "shots": summary.shots,
        "subjects": summary.subjects,
        "examples_sha256": evaluation.examples_sha256,
    }
    if summary.tampering is not None:
        said["tampering"] = summary.tampering
    return said | isolation(point)


def isolation(point: ScorePoint) -> dict:
    """{isolation}, where programs that the model wrote are run."""
    return {"isolation": point.config.isolation} if point.benchmark.executes else {}
