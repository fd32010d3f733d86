"""Records made by hand: what a run would have written, without the run."""

import functools

from omegaconf import OmegaConf

from melora_bench.files import ROOT, options
from melora_bench.records.identity import config_hash, identity
from melora_bench.records.records import RunRecord

METRIC = {"cola": "matthews", "stsb": "pearson"}


@functools.cache
def yaml(name: str) -> dict:
    """One file of configs/, as it stands, without Hydra's part and without what is not part of a run's identity."""
    content = OmegaConf.to_container(OmegaConf.load(ROOT / "configs" / f"{name}.yaml"))
    return identity({key: value for key, value in content.items() if key not in ("defaults", "hydra")})


def record(
    *,
    method="lora",
    n=None,
    r=8,
    task="mrpc",
    seed=0,
    curve=(0.8, 0.9),
    halves=None,
    early=0,
    experiment="mplora_table2",
    recipe=None,
    backbone="roberta_base",
    weights="a" * 64,
    data="b" * 64,
    seeds=(0, 1, 2),
    dirty=False,
    adapter=294912,
    seen=(),
    own=(),
    own_data=None,
    own_backbone=(),
    **config,
) -> RunRecord:
    """One seed of one run. curve: the metric per epoch; halves: (first half, second half) per epoch, by default equal
    to the curve; the first `early` epochs may not be chosen. `own` overrides the method's keys, `own_backbone` the
    backbone's, `own_data` are those of the data's source, `config` overrides the top-level keys of the recipe's
    config."""
    metric, recipe = METRIC.get(task, "accuracy"), recipe or f"mplora/{task}"
    like = backbone if backbone in options("backbone") else "minilm"
    place = identity({"backbone": yaml(f"backbone/{like}")})["backbone"] | {
        "name": backbone,
        "seen": list(seen),
        **dict(own_backbone),
    }
    given = {"r": r, "n": n, "target_modules": place["target_modules"], **dict(own)}
    own = {key: given.get(key, value) for key, value in yaml(f"method/{method}").items()}
    full = yaml("train") | {"precision": "no"} | yaml(f"recipe/{recipe}")
    full |= {
        "method": own,
        "task": yaml(f"benchmark/{task}" if task in options("benchmark") else f"task/{task}"),
        "backbone": place,
        "data": own_data or {},
    } | config
    epochs = [
        {
            "epoch": number,
            "step": 10 * number,
            "lr": 1e-4,
            "train_loss": 0.5,
            "penalty": 0.0,
            "metrics": {metric: value},
            "halves": [{metric: half} for half in both],
            "train_seconds": 2.0,
            "eval_seconds": 1.0,
            "report": {},
            **({"selectable": False} if number <= early else {}),
        }
        for number, (value, both) in enumerate(
            zip(curve, halves or [(value, value) for value in curve], strict=True), 1
        )
    ]
    digest = config_hash(full)
    return RunRecord(
        run_id=f"{experiment}/{task}/{method}-{digest[:10]}-s{seed}",
        config_hash=digest,
        seed=seed,
        packed_with=[other for other in seeds if other != seed],
        choices={"method": method, "task": task, "backbone": backbone, "data": "hub", "recipe": recipe},
        versions={"method": 1, "task": 1},
        config=full,
        git={"commit": "0123456789abcdef", "dirty": dirty},
        env={"python": "3.11.7", "torch": "2.8.0", "device": "A GPU", "processes": 1, "precision": "no"},
        model={"name": backbone, "repo": None, "commit": None, "sha256": weights},
        data={"train": {"rows": 3668, "sha256": [data]}, "validation": {"rows": 408, "sha256": [data]}},
        init_from=None,
        params={"total": adapter + 592130, "adapter": adapter, "head": 592130},
        metric=metric,
        epochs=epochs,
        rows_per_second=100.0,
        tokens_per_second=5000.0,
        peak_memory_bytes=None,
        wall_seconds=6.0,
        resumed_at=[],
        started="2026-01-01T00:00:00+00:00",
        finished="2026-01-01T00:00:06+00:00",
    )
