"""Many workers on one grid: each point is trained once, and what a dead worker held is free."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from conftest import run_point
from helpers import TRAIN, point

from melora_bench.records import records
from melora_bench.training.run import RunError

ENV = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_a_held_point_is_left_alone(tiny_overrides, tmp_path):
    """While one worker holds a point, another skips it; afterwards it is free."""
    with point(tiny_overrides).claimed() as mine:
        assert mine
        with point(tiny_overrides).claimed() as again:
            assert not again
        assert run_point(tiny_overrides) == []
        assert len(run_point([*tiny_overrides, "method=melora"])) == 1
    assert not list((tmp_path / "results").rglob("lora-*.json"))
    assert len(run_point(tiny_overrides)) == 1


@pytest.mark.slow
def test_a_dead_workers_point_is_free(tiny_overrides):
    """kill -9 leaves no claim behind."""
    held = (
        "import sys, time; from helpers import point\n"
        "with point(sys.argv[1:]).claimed() as mine: print(mine, flush=True); time.sleep(60)"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", held, *tiny_overrides],
        stdout=subprocess.PIPE,
        text=True,
        env=ENV | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert worker.stdout.readline() == "True\n"
    with point(tiny_overrides).claimed() as mine:
        assert not mine
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    with point(tiny_overrides).claimed() as mine:
        assert mine


@pytest.mark.slow
def test_four_workers_train_each_point_once(tiny_overrides, tmp_path):
    """Four processes start one sweep of four points together: eight records, each written once, all good."""
    sweep = [*TRAIN, "-m", *tiny_overrides, "method=lora,melora,mplora,head", "seeds=[0,1]", "epochs=3"]
    workers = [
        subprocess.Popen(sweep, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENV) for _ in range(4)
    ]
    printed = [worker.communicate()[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0, 0], printed
    assert sum(text.count("  done  ") for text in printed) == 4
    assert len([records.load(path) for path in (tmp_path / "results").rglob("*.json")]) == 8


class Killed(Exception):
    pass


@pytest.mark.slow
def test_a_kill_between_the_records_of_a_pack(tiny_overrides, tmp_path, monkeypatch):
    """The seeds whose record was not yet written get theirs from the checkpoint: equal to an unbroken run's."""
    command = [*tiny_overrides, "seeds=[0,1,2]"]
    whole = run_point([*command, f"results_dir={tmp_path}/whole", f"output_dir={tmp_path}/whole"])
    real, written = records.RunRecord.save, []

    def save(self, folder):
        if written:
            raise Killed("power cut")
        written.append(self.seed)
        return real(self, folder)

    monkeypatch.setattr(records.RunRecord, "save", save)
    with pytest.raises(RunError, match="power cut"):
        run_point(command)
    assert written == [0]
    monkeypatch.setattr(records.RunRecord, "save", real)
    before = {path: path.read_bytes() for path in (tmp_path / "results").rglob("*.json")}
    rest = [records.load(path) for path in run_point(command)]
    assert [record.seed for record in rest] == [1, 2]
    assert [record.packed_with for record in rest] == [[0, 2], [0, 1]]
    unbroken = [records.load(path) for path in whole[1:]]
    assert [[entry["train_loss"] for entry in record.epochs] for record in rest] == [
        [entry["train_loss"] for entry in record.epochs] for record in unbroken
    ]
    assert all(path.read_bytes() == content for path, content in before.items())
    assert not list((tmp_path / "outputs").rglob("checkpoint.pt"))


@pytest.mark.slow
def test_a_sweep_killed_at_random_moments_loses_and_doubles_nothing(tiny_overrides, tmp_path):
    """kill -9 ten times while a point trains, start again each time: the records are those of an unbroken sweep, and
    none that was there is written again."""
    sweep = [*TRAIN, "-m", *tiny_overrides, "method=lora,mplora", "seeds=[0,1]", "epochs=40"]
    places = [f"results_dir={tmp_path}/whole", f"output_dir={tmp_path}/elsewhere"]
    subprocess.run([*sweep, *places], check=True, capture_output=True, env=ENV)
    chance, there = random.Random(0), {}
    for _ in range(10):
        worker = subprocess.Popen(sweep, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENV)
        seen = [time.monotonic()]
        for _ in range(chance.randint(1, 4)):  # of 80 epochs at most 5 are done in one start
            next(line for line in worker.stdout if "  epoch " in line)
            seen.append(time.monotonic())
        time.sleep(chance.random() * (seen[-1] - seen[-2]) if len(seen) > 2 else 0)
        assert worker.poll() is None
        worker.send_signal(signal.SIGKILL)
        worker.communicate()
        assert there.items() <= (there := contents(tmp_path / "results")).items()
    subprocess.run(sweep, check=True, capture_output=True, env=ENV)
    assert there.items() <= contents(tmp_path / "results").items()
    whole, broken = (
        {path.name: records.load(path) for path in (tmp_path / name).rglob("*.json")} for name in ("whole", "results")
    )
    assert len(whole) == 4 and len(broken) == 4
    for name, record in whole.items():
        assert [curve(entry) for entry in record.epochs] == [curve(entry) for entry in broken[name].epochs]
    resumed = {(record.choices["method"], step) for record in broken.values() for step in record.resumed_at}
    assert len(resumed) >= 8, resumed  # a kill may fall before a point's first checkpoint


def contents(folder) -> dict:
    return {path: path.read_bytes() for path in folder.rglob("*.json")}


def curve(entry: dict) -> dict:
    return {key: entry[key] for key in ("epoch", "step", "lr", "train_loss", "penalty", "metrics", "halves", "report")}
