"""A cross-check by other code: lm-evaluation-harness's own MMLU, BBH and DROP on a model that is already loaded.

https://github.com/EleutherAI/lm-evaluation-harness. Its prompts and scores differ from ours: docs/instructeval.md says
how.
"""

import torch
from torch import nn

TASKS = {"mmlu": ("mmlu", 5), "bbh": ("bbh_fewshot", 3), "drop": ("drop", 3)}  # its name for the task, and shots


def check_harness(benchmark: str) -> None:
    """Raises ValueError for another benchmark than the harness's, and without the harness."""
    if benchmark not in TASKS:
        raise ValueError(f"the harness is not used for benchmark={benchmark}: choose one of {', '.join(TASKS)}")
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise ValueError(f"protocol=lm_eval needs the harness ({error}): pip install -e '.[instruct]'") from error


def harness_scores(
    model: nn.Module,
    tokenizer,
    benchmark: str,
    *,
    limit_per_task: int | None = None,
    batch_size: int = 8,
    autocast: torch.dtype | None = None,
) -> dict:
    """The harness's own results of one benchmark: {"engine", "results": {task: metrics}, "versions": {task: version}}.

    Raises ValueError as `check_harness` does, and when its datasets cannot be had.
    """
    check_harness(benchmark)
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    task, shots = TASKS[benchmark]
    tasks = TaskManager()
    try:
        tasks.load([task])  # before the model works: fetches the data, and raises whatever the datasets library does
    except Exception as error:
        cause = str(error).splitlines()[0][:160]
        raise ValueError(
            f"the harness cannot get the datasets of its task {task} ({cause}): connect to the hub once, "
            "or use this package's own protocol on local files"
        ) from error
    outcome = lm_eval.simple_evaluate(
        # It sets autocast itself, off unless told.
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, mixed_precision_dtype=autocast),
        tasks=[task],
        num_fewshot=shots,
        limit=limit_per_task,
        log_samples=False,
        bootstrap_iters=0,
        task_manager=tasks,
    )
    return {"engine": f"lm_eval {lm_eval.__version__}", "results": outcome["results"], "versions": outcome["versions"]}
