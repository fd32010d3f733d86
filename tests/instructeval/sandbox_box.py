"""The sandbox as tests use it: in every mode that this machine has, in a folder of its own, with a changed
supervisor."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from melora_bench.instructeval.sandbox import runner as sandbox

SYSTEM_PYTHON = "/usr/bin/python3"  # an interpreter that every user can read, which a developer's own may not be
ORDINARY = ("setpriv", "--reuid=54321", "--regid=54321", "--clear-groups")
USER = "namespaces of an ordinary user"  # for whom "namespaces" is the same
CLOSED = ("namespaces", USER) if os.getuid() == 0 else ("namespaces",)
MODES = (*CLOSED, "process")
# The numbers of keyctl(2) and add_key(2) on the machines that the supervisor knows.
KEYCTL, ADD_KEY = {"x86_64": (250, 248), "aarch64": (219, 217)}.get(os.uname().machine, (None, None))
FILTERED = KEYCTL and "Seccomp:" in Path("/proc/self/status").read_text()
REFUSALS: dict[str, str] = {}  # mode: why this machine does not have it, or nothing


class Box:
    """sandbox.run in one of MODES; its supervisors have `marker` on their command line, so that the host can find
    them."""

    def __init__(self, mode: str, marker: str, monkeypatch: pytest.MonkeyPatch):
        self.mode, self.isolation, self.marker = mode, mode.split()[0], marker
        if mode == USER:
            if not shutil.which("setpriv") or not Path(SYSTEM_PYTHON).exists():
                pytest.skip(f"needs setpriv and {SYSTEM_PYTHON}")
            monkeypatch.setattr(sandbox, "COMMAND", (*ORDINARY, *_with_system_python()))
        elif self.isolation == "process" and os.getuid() == 0 and Path(SYSTEM_PYTHON).exists():
            monkeypatch.setattr(sandbox, "COMMAND", _with_system_python())
        if mode not in REFUSALS:
            REFUSALS[mode] = self.refusal()
        if REFUSALS[mode]:
            assert not unshare_can(mode), REFUSALS[mode]
            pytest.skip(REFUSALS[mode])

    def run(self, program: str, timeout: float = 20.0) -> sandbox.Outcome:
        return sandbox.run(program, allow_code_execution=True, timeout=timeout, isolation=self.isolation)

    def refusal(self) -> str:
        try:
            return "" if self.run("").passed else "an empty program does not pass"
        except ValueError as error:
            return str(error)

    def processes(self) -> dict[int, str]:
        return processes_with(self.marker)


def unshare_can(mode: str) -> bool:
    """Whether unshare(1) can do here what the sandbox does: then the sandbox must."""
    if mode == "process" or not shutil.which("unshare"):
        return False
    user = () if os.getuid() == 0 and mode == "namespaces" else ("--map-root-user",)
    mounting = "--mount --pid --net --ipc --fork mount -t tmpfs tmpfs /tmp".split()
    command = [*(ORDINARY if mode == USER else ()), "unshare", *user, *mounting]
    return subprocess.run(command, capture_output=True).returncode == 0


def _with_system_python() -> tuple[str, ...]:
    copy = copied(Path(tempfile.gettempdir()) / "supervisor")  # the checkout may be closed to other users
    return (SYSTEM_PYTHON, *sandbox.COMMAND[1:-1], str(copy))


def copied(copy: Path, *changes: tuple[str, str]) -> Path:
    """A copy of the supervisor that every user can read, with each old text, which stands once, replaced."""
    texts = {path.name: path.read_text() for path in Path(sandbox.COMMAND[-1]).glob("*.py")}
    for old, new in changes:
        [name] = [name for name, text in texts.items() if text.count(old) == 1]
        texts[name] = texts[name].replace(old, new)
    copy.mkdir(exist_ok=True)
    copy.chmod(0o755)
    for name, text in texts.items():
        (copy / name).write_text(text)
        (copy / name).chmod(0o644)
    return copy


def processes_with(marker: str) -> dict[int, str]:
    """Number and command line of this machine's processes that name the marker; a zombie has none."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if marker.encode() in (line := path.read_bytes()):
                found[int(path.parent.name)] = line.replace(b"\0", b" ").decode()
    return found


@contextlib.contextmanager
def open_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder that every user can reach, where the sandbox makes its own."""
    with tempfile.TemporaryDirectory(prefix="sandbox_test_") as name:
        os.chmod(name, 0o755)
        monkeypatch.setattr(tempfile, "tempdir", name)
        yield Path(name)


def end(box: Box) -> None:
    """A failing test must not leave a fork bomb behind: what a stopped process cannot do is fork."""
    stopped: set[int] = set()
    for number in (signal.SIGSTOP, signal.SIGKILL):
        while left := set(box.processes()) - (stopped if number == signal.SIGSTOP else set()):
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            stopped |= left


def change(folder: Path, monkeypatch, *lines: tuple[str, str]) -> None:
    """Let the supervisor be a copy with other text."""
    monkeypatch.setattr(sandbox, "COMMAND", (*sandbox.COMMAND[:-1], str(copied(folder / "changed_supervisor", *lines))))
