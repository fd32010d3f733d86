"""What a person sees of one packed run: its label, where it is, its speed, and its seeds' scores."""

from types import SimpleNamespace

import pytest

from melora_bench.training.schedule import Schedule
from melora_bench.training.view import RunView


@pytest.fixture
def trainer() -> SimpleNamespace:
    """After the first of two epochs of 50 steps; the third seed has failed."""
    schedule = Schedule(steps_per_epoch=50, total=100, round=50, warmup=0)
    history = [[{"train_loss": loss, "metrics": {"f1": score}}] for loss, score in ((0.5, 0.8), (0.25, 0.9))] + [[]]
    return SimpleNamespace(schedule=schedule, history=history, step=0, replicas=3, task=SimpleNamespace(metric="f1"))


def view(trainer: SimpleNamespace, monkeypatch) -> RunView:
    times = iter(range(0, 1000, 10))
    monkeypatch.setattr("melora_bench.training.progress.time.perf_counter", lambda: next(times))
    point = SimpleNamespace(label="mrpc melora n=4", config=SimpleNamespace(batch_size=16))
    return RunView(point, trainer, quiet=False)


def test_a_line_of_the_run_with_mean_and_spread_of_its_seeds(trainer, monkeypatch):
    shown = view(trainer, monkeypatch)
    shown.on_step(75, None)
    # 75 steps of 3 seeds' 16 rows; seen at 0, 10 and 20 s
    assert shown._line("0:07 left") == "epoch 1.5/2  step 75/100  180 rows/s  f1 0.8500 ± 0.0707  0:07 left"


def test_after_each_evaluation_every_seed_has_its_numbers(trainer, monkeypatch, caplog):
    caplog.set_level("INFO")
    shown = view(trainer, monkeypatch)
    trainer.step = 50
    shown.on_round()
    assert caplog.messages == ["mrpc melora n=4  epoch 1/2  loss 0.5000 0.2500 -  f1 0.8000 0.9000 failed  240 rows/s"]


def test_a_long_epoch_has_a_line_a_minute(trainer, monkeypatch, caplog):
    caplog.set_level("INFO")
    shown = view(trainer, monkeypatch)
    for step in range(1, 9):
        shown.on_step(step, None)
    [line] = caplog.messages
    assert line.startswith("mrpc melora n=4  epoch 0.12/2  step 6/100")
