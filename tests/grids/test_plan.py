"""The plan counts what a sweep will do, probes without leaving a trace, and says what it cannot know."""

import pytest
import torch
from conftest import run_point

from melora_bench.commands import plan as command
from melora_bench.grids.plan import plan


@pytest.fixture
def narrowed(tiny_overrides) -> list[str]:
    """mplora_table1 on the tiny model and data: three points of mrpc, two seeds."""
    kept = [item for item in tiny_overrides if not item.startswith("task=")]
    return [*kept, "task=mrpc", "method=share_lora", "method.n=2,4", "seeds=[0,1]", "epochs=3"]


def test_steps_and_tokens_are_those_of_the_runs(narrowed, tmp_path):
    """72 rows in batches of 16 over 3 epochs are 15 steps per point; nothing is written."""
    costs = plan("mplora_table1", narrowed)
    assert [(cost.steps, len(cost.missing), cost.problem) for cost in costs] == [(15, 2, "")] * 4
    assert len({cost.tokens for cost in costs}) == 1 and costs[0].tokens % 6 == 0
    assert costs[0].evaluated < costs[0].tokens and all(cost.hours > 0 for cost in costs)
    assert not (tmp_path / "results").exists() and not (tmp_path / "outputs").exists()


@pytest.mark.slow
def test_what_is_recorded_costs_nothing(narrowed):
    first = plan("mplora_table1", narrowed)[0]  # of a trial, as its epochs are not the table's
    assert first.point.config.experiment.startswith("mplora_table1-")
    run_point(["table=mplora_table1", *first.job, f"experiment={first.point.config.experiment}"])
    costs = plan("mplora_table1", narrowed)
    assert [len(cost.missing) for cost in costs] == [0, 2, 2, 2]
    assert (costs[0].steps, costs[0].tokens, costs[0].hours) == (0, 0, 0.0)


@pytest.mark.slow
def test_what_cannot_be_known_is_said(tmp_path, capsys):
    """Without the data the points are listed all the same, with the reason once."""
    code = command.main(
        ["mplora_table1", "backbone=minilm", "data=local", f"data.root={tmp_path}", "task=mrpc", "method=lora"]
    )
    printed = capsys.readouterr().out
    assert code == 0 and "cost unknown" in printed and "0 points done, 1 missing (3 records)" in printed
    assert "the cost of 1 points is unknown: " in printed and str(tmp_path) in printed


def test_a_point_that_does_not_fit_has_an_unknown_cost(narrowed, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("melora_bench.grids.plan.probe", full)
    assert {cost.problem for cost in plan("mplora_table1", narrowed)} == {
        "batch_size=16 of 2 seeds does not fit the device's memory: a run trains them in waves; or give "
        "fewer seeds, or "
        "raise accumulation"
    }


def test_scoring_is_said_to_come_on_top(narrowed, capsys):
    """The grid of a table that scores what was trained is what is trained."""
    assert command.main(["melora_table3", "data=local", "data.root=nowhere", "method=adalora"]) == 0
    assert "the plan is of training: 1 models are then scored on mmlu" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["audit", "quickstart"]])
def test_one_table_is_named(arguments, capsys):
    assert command.main(arguments) == 2
    assert "name one table" in capsys.readouterr().err
