"""The keys of configs/instructeval.yaml, and what is refused of them before anything is loaded."""

from dataclasses import dataclass

from melora_bench.external.fields import check_fields
from melora_bench.files import options
from melora_bench.records.identity import check_experiment

PRECISIONS = ("no", "bf16", "fp16")
PROTOCOLS = ("instructeval", "lm_eval")


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """configs/instructeval.yaml, which says what each key means."""

    # The resolved values of the config groups.
    benchmark: dict
    backbone: dict
    data: dict
    run: str | None
    which: str
    experiment: str | None
    limit: int | None
    seed: int
    precision: str | None
    allow_code_execution: bool
    isolation: str
    protocol: str
    prompts: str | None
    batch_size: int
    results_dir: str
    output_dir: str

    @classmethod
    def of(cls, values: dict) -> "ScoreConfig":
        """Raises ValueError for a value that cannot be, and for an unknown key."""
        if values["experiment"] is not None:
            check_experiment(values["experiment"])
        if values["precision"] not in (None, *PRECISIONS):
            raise ValueError(f"precision={values['precision']!r} is unknown: use no, bf16 or fp16")
        if values["protocol"] not in PROTOCOLS:
            raise ValueError(f"protocol={values['protocol']!r} is unknown: use instructeval or lm_eval")
        for key, least in {"batch_size": 1, "seed": 0}.items():
            if type(values[key]) is not int or values[key] < least:
                raise ValueError(f"{key}={values[key]} must be a whole number from {least} on")
        if type(values["limit"]) not in (int, type(None)):
            raise ValueError(f"limit={values['limit']} must be a whole number, or null for all questions")
        check_fields(cls, values, "")
        config = cls(**values)
        if config.prompts and config.run is not None:
            raise ValueError(
                "prompts= counts tokens with the tokenizer of backbone=: name the run's backbone instead of run="
            )
        return config


def misnamed(arguments: list[str], command: str) -> str:
    """What is to be said of a command line that names a benchmark as a task, or a task as a benchmark; empty: nothing.

    arguments: Hydra overrides; command: train or score.
    """
    benchmarks = sorted(options("benchmark"))
    for argument in arguments:
        key, _, value = argument.lstrip("+").partition("=")
        group, _, field = key.partition(".")
        names = value.split(",")
        if command == "train" and key == "task" and (scoring := [name for name in names if name in benchmarks]):
            return (
                f"task={scoring[0]} scores a model and trains none: melora-bench score benchmark={scoring[0]} run=RUN"
            )
        if command == "score" and key == "task" and options("task").intersection(names):
            there = " or ".join([", ".join(benchmarks[:-1]), benchmarks[-1]])
            return f"task={value} is trained on, not scored: use benchmark={there}"
        if command == "score" and group == "task":
            return f"benchmarks are named by benchmark{field and f'.{field}'}={value}"
    return ""
