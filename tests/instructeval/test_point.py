"""What makes a score the one that it is, and where its record goes."""

from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from melora_bench.external.fields import build
from melora_bench.files import ROOT
from melora_bench.instructeval.config import ScoreConfig
from melora_bench.instructeval.models import models, precision_of
from melora_bench.instructeval.point import ASKED, ScorePoint, experiment_of, how
from melora_bench.records import records

COMMITTED = sorted((ROOT / "results" / "runs" / "melora_table3").glob("*/head-*.json"))


def request(given: list[str]) -> tuple[ScoreConfig, dict]:
    """The config of a command line of scripts/instructeval.py, and the options of its groups."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("instructeval", given, return_hydra_config=True)
    plain = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    return ScoreConfig.of(OmegaConf.to_container(plain, resolve=True)), dict(cfg.hydra.runtime.choices)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.parent.name)
def test_a_committed_score_is_found_as_done(path):
    """Its identity, choices and file name are those of the command that asks for it today."""
    record = records.load(path)
    asked = record.config["task"]
    config, choices = request(
        [
            f"benchmark={asked['name']}",
            f"limit={asked['limit']}",
            "data=local",
            f"results_dir={ROOT}/results",
            "experiment=melora_table3",
        ]
    )
    benchmark, [scored] = build(config.benchmark, "benchmark"), models(config, choices)
    point = ScorePoint.of(config, choices, benchmark, scored)
    assert point.identity == record.config and point.hash == record.config_hash
    assert point.choices == record.choices
    assert (point.run_id, point.record) == (record.run_id, path)


@pytest.mark.parametrize(
    ("given", "experiment"),
    [
        ([], "mine"),
        (
            ["seed=0", "benchmark.shots=5", "which=best", "precision=bf16", "batch_size=2", "benchmark.temperature=0"],
            "mine",
        ),
        (["limit=20"], "mine-limit-20"),
        (["which=last", "seed=1"], "mine-seed-1-which-last"),
        (["benchmark.shots=2"], "mine-task.shots-2"),
        (["precision=no"], "mine-precision-no"),
        (["experiment=other", "limit=20"], "other"),
        (["run=null", "limit=20"], "adhoc"),
    ],
)
def test_a_score_that_is_asked_otherwise_is_a_trial(given, experiment):
    """Compared by value with configs/, and with the precision in which the model was trained."""
    config, choices = request(["run=mine/alpaca/lora-0", *given])
    trained_in = {"precision": "bf16"} if config.run else {}
    scored = SimpleNamespace(config=trained_in, experiment="mine" if config.run else "adhoc")
    asked = {key: getattr(config, key) for key in ASKED}
    asked = how(config.benchmark, asked, precision_of(config, trained_in.get("precision")))
    assert experiment_of(config, choices["benchmark"], scored, asked) == experiment
