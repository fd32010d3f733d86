"""Runs that are killed: at random moments, at every file operation, by every signal, among others; and replicas that go
bad.

Whatever happens, the same command again ends with the records and adapters of an unbroken run, and leaves nothing else.
"""

import importlib
import itertools
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import files, run_point
from helpers import adapters, curves, equal
from method_helpers import PACKING

from melora_bench.adapters.files import trainable
from melora_bench.records import records
from melora_bench.training.processes import INTERRUPTED, interruptible
from melora_bench.training.run import RunError
from melora_bench.training.trainer import Trainer

pytestmark = pytest.mark.slow
# Functions of os; an open counts if it may create.
OPERATIONS = ("open", "mkdir", "chmod", "fsync", "replace", "rename", "unlink")

# A parent that has imported everything forks every worker: what a run imports only when it needs it takes seconds.
LATE = (
    "torch._dynamo",
    "melora_bench.tasks.text",
    "transformers.models.roberta.modeling_roberta",
    "transformers.models.roberta.tokenization_roberta",
    "melora_bench.tasks.metrics",
)
for name in LATE:
    importlib.import_module(name)
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["test_kills"])


def work(commands: list[list[str]], die_at: int = 0) -> None:
    """Run points one after another; `die_at=n`: kill -9 right before the n-th file operation."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    torch.set_num_threads(1)
    sys.stderr = sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 (to the end of the process)
    calls = itertools.count(1)

    def counted(real):
        def operation(*arguments, **options):
            creates = real is not os_open or arguments[1] & os.O_CREAT
            if creates and next(calls) == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return operation

    os_open = os.open
    if die_at:
        for name in OPERATIONS:
            setattr(os, name, counted(getattr(os, name)))
    with interruptible():
        for command in commands:
            run_point(command)


def started(*commands: list[str], die_at: int = 0):
    worker = FORKS.Process(target=work, args=(list(commands), die_at))
    worker.start()
    return worker


def ended(worker) -> int:
    worker.join(timeout=120)
    assert worker.exitcode is not None
    return worker.exitcode


def finish(*commands: list[str]) -> None:
    assert ended(started(*commands)) == 0


def contents(folder: Path) -> dict:
    return {path: path.read_bytes() for path in folder.rglob("*.json")}


class Place:
    """The records and adapters below one folder."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.folder = folder
        self.command = [*overrides, f"results_dir={folder}/results", f"output_dir={folder}/outputs"]

    def assert_equals(self, whole: "Place") -> None:
        """Curves of every record, tensors of every adapter file, and the names of all files."""
        ours, theirs = ({path.name: curves(path) for path in place.folder.rglob("*.json")} for place in (self, whole))
        assert ours == theirs
        for kind in ("best", "last"):
            ours, theirs = (adapters(place.folder / "outputs", kind) for place in (self, whole))
            assert ours.keys() == theirs.keys() and all(equal(ours[seed], theirs[seed]) for seed in theirs)
        assert files(self.folder) == files(whole.folder)


@pytest.fixture
def place(tiny_overrides, tmp_path, monkeypatch):
    """place(name): a folder of its own for the tiny run of two seeds."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # for the forking parent, which the first test starts
    return lambda name, *overrides: Place(tmp_path / name, *tiny_overrides, "seeds=[0,1]", *overrides)


def test_kills_at_random_moments(place):
    """20 of them, over as many runs as that takes; no record is lost or written again."""
    seed = random.randrange(10**6)
    print(f"the kills' seed is {seed}")
    chance, kills = random.Random(seed), 0
    whole = place("whole", "epochs=8")
    finish(whole.command)
    begun = time.monotonic()
    finish(place("timed", "epochs=8").command)
    usual = time.monotonic() - begun
    for number in itertools.count():
        broken, there = place(f"broken{number}", "epochs=8"), {}
        while True:
            worker = started(broken.command)
            worker.join(timeout=chance.random() * usual)
            if worker.exitcode is None:
                worker.kill()
                kills += ended(worker) == -signal.SIGKILL
            done = worker.exitcode == 0
            assert there.items() <= (there := contents(broken.folder)).items()
            if done:
                break
        finish(broken.command)
        assert there == contents(broken.folder)
        broken.assert_equals(whole)
        if kills >= 20:
            break


def test_a_kill_before_every_file_operation(place):
    """Of a run of one epoch, from its first to its last; each followed by one start that is left alone."""
    whole = place("whole", "epochs=1")
    finish(whole.command)
    for number in itertools.count(1):
        broken = place(f"broken{number}", "epochs=1")
        code = ended(started(broken.command, die_at=number))
        there = contents(broken.folder)
        finish(broken.command)
        assert there.items() <= contents(broken.folder).items(), number
        broken.assert_equals(whole)
        if code == 0:
            break
        assert code == -signal.SIGKILL, number
    assert number > 60, (
        number
    )  # of 10 adapter files, checkpoints and records at least: open, chmod, fsync, replace, unlink


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP", "QUIT", "KILL"])
def test_signals(name, place):
    """In the middle of training: the process ends at once, and what it did is gone on with."""
    whole, broken = place("whole", "epochs=12"), place("broken", "epochs=12")
    finish(whole.command)
    worker = started(broken.command)
    while not list(broken.folder.rglob("checkpoint.pt")):
        assert worker.exitcode is None
        time.sleep(0.005)
    number = getattr(signal, f"SIG{name}")
    os.kill(worker.pid, number)
    assert ended(worker) == (INTERRUPTED if name == "INT" else -number)
    assert not list(broken.folder.rglob("error.txt")) and not contents(broken.folder)
    finish(broken.command)
    assert records.load(min(broken.folder.rglob("*.json"))).resumed_at
    broken.assert_equals(whole)


def test_the_holder_dies_among_four_workers(place):
    """Four workers on one grid of four points; the one that holds the first point is killed in it. The others finish
    theirs, a later start the rest: each record is written once."""
    methods = ("lora", "melora", "mplora", "dylora")
    grids = {name: [place(name, "epochs=10", f"method={method}") for method in methods] for name in ("whole", "broken")}
    commands = {name: [of.command for of in grid] for name, grid in grids.items()}
    finish(*commands["whole"])
    holder = started(*commands["broken"])
    folder = grids["broken"][0].folder
    while not list(folder.rglob("checkpoint.pt")):
        assert holder.exitcode is None
        time.sleep(0.005)
    others = [started(*commands["broken"]) for _ in range(3)]
    holder.kill()
    assert ended(holder) == -signal.SIGKILL
    assert [ended(worker) for worker in others] == [0, 0, 0]
    there = contents(folder)
    assert len(there) >= 6, there
    finish(*commands["broken"])
    assert there.items() <= contents(folder).items()
    for one, two in zip(sorted(contents(folder)), sorted(contents(grids["whole"][0].folder)), strict=True):
        assert one.name == two.name and curves(one) == curves(two)
    assert files(folder) == files(grids["whole"][0].folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("method", PACKING)
def test_one_replica_of_three_goes_bad(method, value, place, monkeypatch):
    """Seed 1's first trained tensor becomes NaN or inf before step 6: no record of it, the others' bit-equal."""
    own = ["method.delta_t=1"] * (method == "adalora")  # so that it prunes within 15 steps
    good, bad = (place(name, f"method={method}", "seeds=[0,1,2]", "epochs=3", *own) for name in ("good", "bad"))
    run_point(good.command)
    real, calls = Trainer._loss, itertools.count()

    def poisoned(self, batch):
        if next(calls) == 6:
            next(iter(trainable(self.model).values())).data[1] = value
        return real(self, batch)

    monkeypatch.setattr(Trainer, "_loss", poisoned)
    with pytest.raises(RunError, match=r"seed 1 stopped at step \d+: its loss was not finite"):
        run_point(bad.command)
    ours, theirs = ({path.name[-7:]: curves(path) for path in of.folder.rglob("*.json")} for of in (bad, good))
    assert ours == {name: theirs[name] for name in ours} and sorted(ours) == ["s0.json", "s2.json"]
    whole, partly = adapters(good.folder / "outputs"), adapters(bad.folder / "outputs")
    assert all(equal(whole[seed], partly[seed]) for seed in (0, 2))
