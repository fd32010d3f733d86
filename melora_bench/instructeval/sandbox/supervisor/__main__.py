"""The sandbox's inner side: a script of the standard library alone that the host starts, never imported.

It reads the program from stdin and the filter of system calls from its socket, takes away what a program must not have,
forks, and runs the program in the fork. On the socket the host gets READY (or one line that says what cannot be set
up), then the verdict of the first that has one: the program's process, or the supervisor when that process ended
without a word.
"""

import contextlib
import glob
import os
import signal
import socket
import sys

from confinement import check_process_limit, enter_namespaces, new_root, own_id, restrict
from kernel import DUMPABLE, PDEATHSIG, SUBREAPER, prctl, write

READY = b"ready"


def execute(text: str, channel: socket.socket) -> None:
    """Run the program as HumanEval's reference does, `exec` with empty globals, send the verdict, and never return.

    The secret that says "passed" is read before the program starts, so that no descriptor holds anything to send back,
    and, like all that the end needs, bound here, so that no module does; a fork of the program has no verdict.
    """
    secret = channel.recv(64)
    me, getpid, send, leave = os.getpid(), os.getpid, channel.send, os._exit
    try:
        exec(compile(text, "<program>", "exec", dont_inherit=True), {})
        verdict = secret
    except BaseException as error:
        verdict = describe(error)
    if getpid() == me:
        send(verdict)
    leave(0)


def describe(error: BaseException) -> bytes:
    name = type(error).__name__
    try:
        text = f": {error}" if str(error) else ""
    except BaseException:
        text = ""
    word = "exited" if isinstance(error, SystemExit) else "failed"
    return f"{word}: {name}{text}"[:300].encode("utf-8", "replace")


def wait_for(pid: int) -> int:
    """Reap every child until `pid` ends, which SIGTERM makes it do; its exit code, or minus the signal."""
    signal.signal(signal.SIGTERM, lambda *_: _signal({pid}, signal.SIGKILL))
    ended = 0
    while ended != pid:
        ended, status = os.wait()
    return os.waitstatus_to_exitcode(status)


def ending(code: int) -> str:
    if code == -signal.SIGXCPU:
        return "killed: CPU time"
    return f"exited: status {code}" if code >= 0 else f"killed: signal {-code}"


def descendants(pid: int) -> set[int]:
    pids = set()
    for path in glob.glob(f"/proc/{pid}/task/*/children"):
        with contextlib.suppress(OSError), open(path) as file:  # it may have ended
            children = {int(child) for child in file.read().split()}
            pids |= children.union(*map(descendants, children))
    return pids


def kill_descendants() -> None:
    """As the reaper of all. They are stopped before they are killed:
    else those left would fork into the free places."""
    me = os.getpid()
    with contextlib.suppress(ChildProcessError):
        while True:
            stopped: set[int] = set()
            while running := descendants(me) - stopped:
                _signal(running, signal.SIGSTOP)
                stopped |= running
            _signal(stopped, signal.SIGKILL)
            os.wait()


def _signal(pids: set[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def supervise(isolation: str, cpu_seconds: int, folder: str, channel: socket.socket) -> None:
    text = sys.stdin.buffer.read().decode("utf-8", "surrogatepass")
    rules = channel.recv(2**16)
    number = own_id()
    if os.getuid() == 0 and number is None:
        check_process_limit()
    with open(os.devnull) as null:
        os.dup2(null.fileno(), 0)
    os.umask(0o022)
    prctl(PDEATHSIG, signal.SIGTERM)
    write("/proc/self/oom_score_adj", "1000")  # short of memory, the kernel kills this first
    if isolation == "namespaces":
        enter_namespaces(number)
        init = os.fork()  # process 1 of the new namespace: when it ends, the kernel kills all others there
        if init:
            wait_for(init)
            return
        prctl(PDEATHSIG, signal.SIGKILL)
        new_root()
    else:
        prctl(SUBREAPER, 1)
        os.chdir(folder)
        if number is not None:
            os.chown(folder, number, number)
    prctl(DUMPABLE, 0)  # a program of the same user reads no memory here
    program = os.fork()
    if program == 0:
        restrict(cpu_seconds, number, rules)
        os.listdir(os.path.dirname(os.__file__))  # what it will import
        channel.send(READY)
        execute(text, channel)
    verdict = ending(wait_for(program)).encode()
    with contextlib.suppress(OSError):  # the host may have gone
        channel.send(verdict, socket.MSG_DONTWAIT)
    if isolation == "process":
        kill_descendants()


def main() -> None:
    """In a function: the program can import __main__, and must not find the socket in it."""
    isolation, cpu_seconds, folder, descriptor = sys.argv[1:]
    sys.argv[1:] = []
    del sys.path[0]  # this folder, whose modules are no program's
    channel = socket.socket(fileno=int(descriptor))
    channel.set_inheritable(False)
    try:
        supervise(isolation, int(cpu_seconds), folder, channel)
    except OSError as error:
        with contextlib.suppress(OSError):
            channel.send(f"{error.strerror}{f': {error.filename}' if error.filename else ''}".encode())
    os._exit(0)


if __name__ == "__main__":
    main()
