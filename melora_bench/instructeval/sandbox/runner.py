"""Runs one generated Python program in a sandbox and says whether it came to its end.

`isolation="namespaces"` (the default): no network, no other process, no file of a user. `isolation="process"`, for
machines without namespaces, must be asked for: limits alone. docs/sandbox.md says what each keeps out and how a program
passes. supervisor/ is the inner side, one script for root and, inside a user namespace, for an ordinary user.
bubblewrap and unshare(1) would need the same kernel features, the same script inside for the limits and the verdict,
and a second code path.
"""

import contextlib
import logging
import math
import os
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from melora_bench.instructeval.sandbox.system_calls import filter_for

log = logging.getLogger(__name__)
ISOLATIONS = ("namespaces", "process")
FOLDER = "melora_sandbox_"
OUTPUT_BYTES = 16_384  # kept of what the program prints
START_SECONDS = 60  # for the interpreter to start on a busy machine; not part of the program's time
END_SECONDS = 10  # for its processes to die
READY = b"ready"
# Nothing of the caller's environment. Hashes are fixed, so that the order of a set does not decide a verdict.
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
# No user or site packages, no compiled files, unbuffered output; -I would drop the hash seed too.
COMMAND = (sys.executable, "-s", "-S", "-P", "-B", "-u", str(Path(__file__).with_name("supervisor")))
REMEDY = {
    "namespaces": "allow user namespaces (sysctl kernel.unprivileged_userns_clone=1 and "
    "kernel.apparmor_restrict_unprivileged_userns=0), or start the container with --privileged, or, on a machine that "
    "holds nothing of value, set isolation=process",
    "process": "run as an ordinary user, or with an interpreter that every user can read",
}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one program.

    reason: "passed"; "failed: <exception>"; "exited: <SystemExit or status>", before its end; "killed: <limit or
    signal>"; "timed out".
    """

    passed: bool
    reason: str
    output: str  # stdout and stderr, the first OUTPUT_BYTES
    seconds: float  # wall clock, from the program's first line
    isolation: str


def run(program: str, *, allow_code_execution: bool, timeout: float = 3.0, isolation: str = "namespaces") -> Outcome:
    """Run `program` to its end or for `timeout` seconds; it passes when its last line is reached.

    Raises ValueError without `allow_code_execution`, for a bad argument, and where the isolation cannot be had.
    """
    if allow_code_execution is not True:
        raise ValueError("this evaluation runs programs that a model wrote: set allow_code_execution=true to let it")
    if isolation not in ISOLATIONS:
        raise ValueError(f"isolation={isolation!r} is not one of {', '.join(ISOLATIONS)}")
    if not 0 < timeout < math.inf:
        raise ValueError(f"timeout={timeout!r} must be a positive number of seconds")
    if sys.platform != "linux":
        raise ValueError(
            f"generated programs run on Linux only, this is {sys.platform}: use a Linux machine or container"
        )
    secret = secrets.token_bytes(32)
    channel, inner = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with (
        channel,
        _folder() as folder,
        tempfile.TemporaryFile() as source,
    ):
        source.write(program.encode("utf-8", "surrogatepass"))
        source.seek(0)
        channel.send(filter_for(os.uname().machine) if sys.maxsize > 2**32 else b"")  # other numbers at 32 bits
        channel.send(secret)
        with inner:
            process = _supervisor([isolation, str(math.ceil(timeout) + 1), folder, str(inner.fileno())], source, inner)
        output = bytearray()
        with cast(IO[bytes], process.stdout) as printed:
            try:
                greeting = _next_message(channel, printed, output, START_SECONDS)
                if greeting == READY:
                    start = time.monotonic()
                    answer = _next_message(channel, printed, output, timeout)
                    seconds = time.monotonic() - start
            finally:
                _stop(process)
            _drain(printed, output)
    text = output.decode("utf-8", "replace")
    if greeting != READY:
        cause = (greeting or b"").decode("utf-8", "replace") or text.strip().rpartition("\n")[2] or "no answer"
        raise ValueError(f"isolation={isolation} does not work here ({cause}): {REMEDY[isolation]}")
    reason = "passed" if answer == secret else _reason(answer)
    return Outcome(
        passed=reason == "passed", reason=reason, output=text, seconds=round(seconds, 3), isolation=isolation
    )


def _supervisor(arguments: list[str], source: IO[bytes], inner: socket.socket) -> subprocess.Popen:
    """Start the inner side, which reads the program from `source`; of the files open here it gets `inner` alone."""
    return subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=source,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
        cwd="/",
        env=ENVIRONMENT,
        pass_fds=[inner.fileno()],
        start_new_session=True,
    )


@contextlib.contextmanager
def _folder() -> Iterator[str]:
    """A temporary folder, removed with all that a program can leave in it: folders nested by the thousand,
    or unreadable."""
    path = tempfile.mkdtemp(prefix=FOLDER)
    try:
        yield path
    finally:
        try:
            os.rmdir(path)
        except OSError:
            _remove(path)


def _remove(path: str) -> None:
    """By two commands that need neither stack nor path for a nested folder, and follow no link; at worst a warning."""
    try:
        for command in ("chmod", "-R", "u+rwX"), ("rm", "-rf"):
            error = subprocess.run([*command, "--", path], stderr=subprocess.PIPE, text=True, env=ENVIRONMENT).stderr
    except OSError as missing:
        error = str(missing)
    if os.path.lexists(path):
        log.warning("%s, which a generated program filled, cannot be removed: %s", path, error.strip()[:200])


def _reason(answer: bytes | None) -> str:
    """The documented words only, on one line, whatever the program wrote to the socket."""
    if answer is None:
        return "timed out"
    text = " ".join(answer.decode("utf-8", "replace").split())
    return text if text.startswith(("failed: ", "exited: ", "killed: ")) else "failed: no verdict"


def _next_message(channel: socket.socket, pipe: IO[bytes], output: bytearray, seconds: float) -> bytes | None:
    """The next message (empty: the other side is gone), or None when time is up; meanwhile the output is read."""
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        selector.register(channel, selectors.EVENT_READ)
        selector.register(pipe, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            ready = {key.fileobj for key, _ in selector.select(left)}
            if pipe in ready and not _read(pipe, output):
                selector.unregister(pipe)
            if channel in ready:
                with contextlib.suppress(ConnectionResetError):  # the other side left the secret unread
                    return channel.recv(4096)
                return channel.recv(4096)  # what it had sent
    return None


def _read(pipe: IO[bytes], output: bytearray) -> bool:
    """Read once, keep what there is room for; False at the end."""
    data = os.read(pipe.fileno(), 65_536)
    output += data[: OUTPUT_BYTES - len(output)]
    return bool(data)


def _drain(pipe: IO[bytes], output: bytearray) -> None:
    os.set_blocking(pipe.fileno(), False)  # in isolation=process, somebody may have escaped with the other end
    with contextlib.suppress(BlockingIOError):
        while _read(pipe, output):
            pass


def _stop(process: subprocess.Popen) -> None:
    """SIGTERM: the supervisor kills all that it started and ends when they have;
    SIGCONT, should they have stopped it."""
    process.terminate()
    process.send_signal(signal.SIGCONT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
