"""Hostile programs: each is contained and told from a program that passes, in every isolation this machine has."""

import ctypes
import gzip
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from sandbox_box import ADD_KEY, CLOSED, FILTERED, KEYCTL, MODES, USER, Box, change, end, open_folder

from melora_bench.external.fields import build
from melora_bench.files import ROOT
from melora_bench.instructeval.humaneval import completion, program
from melora_bench.instructeval.sandbox import runner as sandbox


@pytest.fixture
def folder(monkeypatch):
    with open_folder(monkeypatch) as path:
        yield path


def in_mode(mode: str, folder: Path, monkeypatch):
    """The sandbox in one mode; afterwards nothing of it may be left, neither a process nor a file."""
    box = Box(mode, str(folder), monkeypatch)
    yield box
    left = box.processes()
    end(box)
    assert left == {}
    assert list(folder.glob(f"{sandbox.FOLDER}*")) == []


@pytest.fixture(params=MODES)
def box(request, folder, monkeypatch):
    yield from in_mode(request.param, folder, monkeypatch)


@pytest.fixture(params=CLOSED)
def closed_box(request, folder, monkeypatch):
    """The modes that close the network, the file system and other processes."""
    yield from in_mode(request.param, folder, monkeypatch)


@pytest.fixture
def forking_box(box):
    """Where a program can fork at all."""
    return needs_forks(box)


def needs_forks(box):
    if box.run("import os\nif os.fork() == 0: os._exit(0)").reason.startswith("failed: BlockingIOError"):
        pytest.skip("here the user's other processes count against the limit, and no program can fork")
    return box


PROGRAM = "def double(x):\n    return 2 * x\n\ndef check(candidate):\n    assert candidate({}) == 4\n\ncheck(double)"


def test_a_correct_program_passes_and_a_wrong_one_fails(box):
    right, wrong = box.run("print('hello')\n" + PROGRAM.format(2)), box.run(PROGRAM.format(3))
    assert (right.passed, right.reason, right.output, right.isolation) == (True, "passed", "hello\n", box.isolation)
    assert (wrong.passed, wrong.reason, wrong.output) == (False, "failed: AssertionError", "")
    assert 0 <= right.seconds < 20


ECHO = (
    "import os\nfor n in range(3, 32):\n  try: os.write(n, os.read(n, 64)); break\n  except OSError: pass\nos._exit(0)"
)
MAIN = "import __main__ as m\nm.channel.send(m.channel.recv(64))\nassert 0"
AGAIN = (
    "import __main__ as m, socket\nfor n in range(3, 32):\n  try: m.execute('', socket.socket(fileno=n))\n"
    "  except OSError: pass\nassert 0"
)

ENDINGS = {
    "endless loop": ("while True: pass", "timed out"),
    "sleep": ("import time\ntime.sleep(3600)", "timed out"),
    "SIGTERM ignored": (
        "import signal\nfor n in range(1, 32):\n  try: signal.signal(n, signal.SIG_IGN)\n"
        "  except (OSError, ValueError): pass\nwhile True: pass",
        "timed out",
    ),
    "sys.exit": ("import sys\nsys.exit(0)", "exited: SystemExit: 0"),
    "os._exit": ("import os\nos._exit(0)", "exited: status 0"),
    "os._exit at import": ("import os\nclass Solution:\n  os._exit(3)", "exited: status 3"),
    "exec of a shell": ("import os\nos.execv('/bin/sh', ['sh', '-c', 'exit 0'])", "exited: status 0"),
    "a shell floods the descriptors": (
        "import os\nos.execv('/bin/sh', ['sh', '-c', 'for n in 3 4 5 6 7 8 9; do echo passed >&$n; done; exit 0'])",
        "exited: status",
    ),
    "atexit": ("import atexit, os\natexit.register(os._exit, 0)\nassert False", "failed: AssertionError"),
    "said to have passed": ("import os\nprint('passed', flush=True)\nos._exit(0)", "exited: status 0"),
    "every descriptor says passed": (
        "import os\nfor n in range(3, 32):\n  try: os.write(n, b'passed')\n  except OSError: pass\nos._exit(0)",
        "failed: no verdict",
    ),
    "every descriptor says nothing": (
        "import os, socket\nfor n in range(3, 32):\n  try: socket.socket(fileno=n).send(b'')\n  except OSError: pass",
        "failed: no verdict",
    ),
    "what a descriptor says is sent back": (ECHO, "timed out"),
    "and without waiting": (ECHO.replace("os.write", "os.set_blocking(n, False); os.write"), "exited: status 0"),
    "the harness's socket": (MAIN, "failed: AttributeError"),
    "the harness run again": (AGAIN, "timed out"),
    "AssertionError caught and left": ("import os\ntry: assert False\nexcept AssertionError: os._exit(0)", "exited"),
    "an exception that cannot be printed": (
        "class E(Exception):\n  def __str__(self): raise SystemExit(0)\nraise E",
        "failed: E",
    ),
    "memory bomb": ("x = []\nwhile True: x.append(bytearray(10**7))", "failed: MemoryError"),
    "one great block": ("x = bytearray(10**12)", "failed: MemoryError"),
    "many small objects": (
        "import gc\ngc.disable()\nx = []\nwhile True: x.append([x])",
        ("failed: MemoryError", "exited: status 1"),
    ),
    "deep recursion": ("def f(n): return f(n + 1)\nf(0)", "failed: RecursionError"),
    "stack overflow": (
        "import sys\nsys.setrecursionlimit(10**9)\nclass A:\n  def __repr__(self): return repr(self)\nrepr(A())",
        ("killed: signal 11", "failed: RecursionError", "failed: MemoryError"),
    ),
    "invalid address": ("import ctypes\nctypes.string_at(0)", "killed: signal 11"),
    "CPU signal": ("import os, signal\nos.kill(os.getpid(), signal.SIGXCPU)", "killed: CPU time"),
    "huge file": (
        "with open('huge', 'wb') as f:\n  while True: f.write(bytes(2**20))",
        "failed: OSError: [Errno 27] File too large",
    ),
    "own folder deleted": (
        "import os, shutil\nshutil.rmtree(os.getcwd(), ignore_errors=True)\nassert 0",
        "failed: Ass",
    ),
    "syntax error": ("def f(:", "failed: SyntaxError"),
    "deep nesting": ("x = " + "(" * 10**5, ("failed: SyntaxError", "failed: MemoryError", "killed: signal 11")),
    "NUL": ("x = 1\0", "failed: "),
    "not UTF-8": ("x = '\udcff'", "failed: UnicodeEncodeError"),
    "input": ("input()", "failed: EOFError"),
    "threads left": (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(3600,)).start()\nassert 0",
        "failed: AssertionError",
    ),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_a_program_that_does_not_reach_its_end_is_told_how(box, name):
    program, reasons = ENDINGS[name]
    if name == "threads left":
        needs_forks(box)
    outcome = box.run(program, timeout=0.5 if reasons == "timed out" else 20.0)
    assert not outcome.passed
    assert outcome.reason.startswith(reasons), outcome
    assert "\n" not in outcome.reason and len(outcome.reason) <= 300


def test_a_fork_that_reaches_the_end_has_no_verdict(forking_box):
    assert forking_box.run("import os\nif os.fork(): os._exit(0)").reason == "exited: status 0"
    assert forking_box.run("import os\nif os.fork() == 0: os._exit(3)\nos.wait()").reason == "passed"
    assert forking_box.run("import os\nif os.fork() == 0: raise KeyError\nos.wait()").reason == "passed"


def test_a_fork_finds_nothing_to_send_back(forking_box):
    fork = "import os\nif os.fork():\n  os.wait()\n  os._exit(0)\n"
    assert forking_box.run(fork + ECHO, timeout=0.5).reason == "timed out"
    assert forking_box.run(fork + AGAIN, timeout=0.5).reason == "timed out"
    assert forking_box.run(fork + MAIN).reason == "exited: status 0"


def test_a_program_that_looks_for_the_secret_finds_it(box):
    """The limit that sandbox.py names: one interpreter runs the program and says how it ended."""
    program = "import sys\nfound = sys._getframe(1).f_locals\nfound['send'](found['secret'])\nassert False"
    assert box.run(program).reason == "passed"


def test_a_flood_of_output_is_cut(box):
    cut = box.run("for _ in range(100): print('x' * 10_000)")
    endless = box.run("while True: print('y' * 1_000)", timeout=0.5)
    assert (cut.passed, cut.output) == (True, ("x" * 10_000 + "\n" + "x" * 10_000)[: sandbox.OUTPUT_BYTES])
    assert (endless.reason, len(endless.output)) == ("timed out", sandbox.OUTPUT_BYTES)


def test_output_that_is_no_text_is_replaced(box):
    assert box.run("import sys\nsys.stdout.buffer.write(b'a\\xff')").output == "a�"


def test_a_fork_bomb_gets_a_handful_of_processes(forking_box):
    outcome, peak, done = [], 0, threading.Event()

    def bomb():
        program = "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass"
        outcome.append(forking_box.run(program, timeout=1.5))
        done.set()

    threading.Thread(target=bomb).start()
    while not done.wait(0.02):
        peak = max(peak, len(forking_box.processes()))
    assert outcome[0].reason == "timed out"
    outside = 2 if forking_box.isolation == "namespaces" else 1  # the supervisors
    assert 2 < peak <= 8 + outside


def test_a_daemon_ends_with_its_program(forking_box):
    """It has a session of its own, ignores signals, outlives its parents and holds none of their descriptors."""
    program = f"""
import os, signal, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(n, signal.SIG_IGN)
        os.closerange(0, 32)
        os.execv("/bin/sleep", ["{forking_box.marker}", "3600"])
    os._exit(0)
os.wait()
time.sleep(0.3)
{{ending}}
"""
    assert forking_box.run(program.format(ending="")).passed
    assert forking_box.processes() == {}
    assert forking_box.run(program.format(ending="time.sleep(3600)"), timeout=1.0).reason == "timed out"
    assert forking_box.processes() == {}


def test_a_daemon_is_seen_while_it_runs(forking_box):
    """The check of the test above can fail: during the run, the host does see the daemon."""
    daemon = f"os.execv('/bin/sleep', ['daemon {forking_box.marker}', '60'])"
    program = f"import os, time\nif os.fork() == 0: {daemon}\ntime.sleep(60)"
    thread = threading.Thread(target=forking_box.run, args=(program, 2.0))
    thread.start()
    deadline, seen = time.monotonic() + 20, False
    while thread.is_alive() and not seen and time.monotonic() < deadline:
        seen = any(line.startswith("daemon ") for line in forking_box.processes().values())
    thread.join()
    assert seen


def test_the_callers_process_cannot_be_killed(box):
    if box.isolation == "process" and os.getuid() != 0 and ctypes.CDLL(None).syscall(444, None, 0, 1) < 6:
        pytest.skip("before Linux 6.12, isolation=process lets a program signal its user's processes")
    targets = f"{os.getpid()}, {os.getppid()}, os.getppid()"
    program = (
        "import os, signal\nfor pid in ({}):\n  try: os.kill(pid, signal.SIGKILL)\n  except OSError: pass\nassert 0"
    )
    assert box.run(program.format(targets)).reason == "failed: AssertionError"


def test_killing_everything_reaches_nothing(closed_box):
    program = "import os\nfor pid in (-1, 0, *range(2, 40_000)):\n  if pid != os.getpid():\n    try: os.kill(pid, 9)\n"
    outcome = closed_box.run(program + "    except OSError: pass")
    assert outcome.reason == "killed: signal 9"  # kill(0) is its own session


def test_an_interrupted_caller_leaves_nothing(forking_box):
    """The caller is killed outright while a program, with a daemon, runs."""
    program = "import os, time\nif os.fork() == 0: os.setsid()\ntime.sleep(3600)"
    script = f"""
import tempfile
from melora_bench.instructeval.sandbox import runner as sandbox
tempfile.tempdir, sandbox.COMMAND = {tempfile.tempdir!r}, {sandbox.COMMAND!r}
sandbox.run({program!r}, allow_code_execution=True, timeout=3600, isolation={forking_box.isolation!r})
"""
    caller = subprocess.Popen([sys.executable, "-c", script], cwd=Path(sandbox.__file__).parents[2])
    many = (
        4 if forking_box.isolation == "namespaces" else 3
    )  # the supervisors, the program and its daemon; `caller` has no marker
    wait_until(
        lambda: sum("supervisor" in line and "-c" not in line for line in forking_box.processes().values()) == many
    )
    caller.kill()
    caller.wait()
    wait_until(lambda: forking_box.processes() == {})
    for left in Path(tempfile.tempdir).glob(f"{sandbox.FOLDER}*"):  # nobody was there to remove it
        left.rmdir()


def test_a_killed_supervisor_leaves_nothing(closed_box):
    """The first of the four processes: the supervisor outside, the one inside, the program and its fork."""
    outcomes = []
    program = "import os, time\nos.fork()\ntime.sleep(3600)"
    thread = threading.Thread(target=lambda: outcomes.append(closed_box.run(program)))
    thread.start()
    wait_until(lambda: len(closed_box.processes()) == 4)
    os.kill(min(closed_box.processes()), 9)
    thread.join()
    wait_until(lambda: closed_box.processes() == {})
    assert outcomes[0].reason in ("failed: no verdict", "killed: signal 9")


def wait_until(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_network_is_not_reached(box):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        program = f"import socket\nsocket.create_connection(('127.0.0.1', {listener.getsockname()[1]}), timeout=5)"
        outcome = box.run(program)
        listener.settimeout(0.2)
        if box.isolation == "process":  # documented; and it shows that the listener listens
            assert outcome.passed
            listener.accept()[0].close()
        else:
            assert outcome.reason.startswith("failed: OSError: [Errno 101]")
            with pytest.raises(TimeoutError):
                listener.accept()


def test_an_abstract_socket_of_the_host_is_not_reached(closed_box):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0" + closed_box.marker)
        listener.listen()
        program = f"import socket\nsocket.socket(socket.AF_UNIX).connect('\\0{closed_box.marker}')"
        assert closed_box.run(program).reason.startswith("failed: ConnectionRefusedError")


def test_files_of_the_host_cannot_be_read(closed_box, folder, monkeypatch):
    secret = folder / "secret"
    secret.write_text("secret")
    secret.chmod(0o644)
    assert closed_box.run(f"open({str(secret)!r})").reason.startswith("failed: FileNotFoundError")
    home = Path.home()
    prefix = Path(sys.base_prefix)
    hidden = [home / name for name in os.listdir(home) if home / name not in prefix.parents]
    hidden += [
        Path(sandbox.__file__),
        Path(__file__),
        Path("/proc/1"),
        Path("/sys/kernel"),
        Path("/etc/passwd"),
        Path("/run/user"),
        Path("/var/log"),
        Path("/old/etc"),
    ]
    program = f"import os\nfound = [path for path in {[str(path) for path in hidden]!r} if os.path.lexists(path)]\nprint(found)"
    assert closed_box.run(program).output == "[]\n"


@pytest.mark.parametrize("seccomp", [True, False])
@pytest.mark.parametrize("keyring", [True, False])
def test_a_key_of_the_callers_session_cannot_be_read(box, folder, monkeypatch, keyring, seccomp):
    """Each of the two guards is enough; without both, the program has the key."""
    if not FILTERED:
        pytest.skip("the supervisor has no filter of system calls here")
    join, refuse = (
        ("kernel.JOIN_SESSION_KEYRING, None", "99, None"),
        ("prctl(kernel.SECCOMP,", "max("),
    )  # 99 is no call of keyctl
    change(folder, monkeypatch, *([] if keyring else [join]), *([] if seccomp else [refuse]))
    program = f"""
import ctypes
libc = ctypes.CDLL(None)
key, text = libc.syscall({KEYCTL}, 10, -3, b"user", b"of the caller", 0), ctypes.create_string_buffer(64)
libc.syscall({KEYCTL}, 11, key, text, 64)
print(text.value.decode())
"""
    outcomes = []

    def with_a_key():  # the keyring is this thread's
        libc = ctypes.CDLL(None)
        if libc.syscall(KEYCTL, 1, None) > 0 and libc.syscall(ADD_KEY, b"user", b"of the caller", b"hidden", 6, -3) > 0:
            outcomes.append(box.run(program))

    thread = threading.Thread(target=with_a_key)
    thread.start()
    thread.join()
    if not outcomes:
        pytest.skip("here no key can be made")
    assert outcomes[0].output == ("\n" if keyring or seccomp else "hidden\n")


def test_the_root_holds_what_python_needs_and_no_more(closed_box):
    allowed = {"bin", "dev", "etc", "lib", "lib64", "tmp", "usr"} | {Path(sys.base_prefix).parts[1]}
    listing = closed_box.run(
        "import os, json\nprint(json.dumps([os.listdir(p) for p in ('/', '/dev', '/tmp', '/etc')]))"
    )
    root, dev, tmp, etc = json.loads(listing.output)
    assert set(root) <= allowed
    assert sorted(dev) == ["null", "random", "urandom", "zero"]
    assert (tmp, set(etc) <= {"ld.so.cache"}) == ([], True)


def test_nothing_but_tmp_can_be_written(closed_box):
    program = """
import os, sys
def writable(path):
    try:
        os.close(os.open(path + "/new", os.O_CREAT | os.O_WRONLY))
        return True
    except OSError:
        return False
places = ["/", *sys.path, *(f"/{one}" for one in os.listdir("/")), *(f"/usr/{two}" for two in os.listdir("/usr"))]
print(sorted({path for path in places if writable(path)}))
mounts = ["/", "/dev/null", "/usr", "/lib/", os.path.dirname(os.__file__), "/tmp"]
print([os.statvfs(path).f_flag & (os.ST_RDONLY | os.ST_NOSUID) for path in mounts])
try:
    os.chmod(os.__file__, 0o777)
    open(os.__file__, "a")
except OSError as error:
    print(error.errno in (1, 13, 30))
"""
    outcome = closed_box.run(program)
    assert (outcome.reason, outcome.output) == ("passed", "['/tmp']\n[3, 3, 3, 3, 3, 2]\nTrue\n")


@pytest.mark.parametrize("box", ["process"], indirect=True)
def test_the_weaker_mode_writes_in_its_own_folder_which_is_removed(box, folder):
    outcome = box.run("import os\nopen('here', 'w').close()\nprint(os.getcwd(), os.listdir())")
    place, _, names = outcome.output.strip().partition(" ")
    assert (Path(place).parent, names) == (folder, "['here']")
    assert not Path(place).exists()


def test_an_interpreter_under_another_name_and_below_tmp_finds_its_modules(folder, monkeypatch):
    """A virtual environment of an interpreter that is reached through a link, as installers make them."""
    if Path(sys.base_prefix) == Path("/usr"):
        pytest.skip("the system's interpreter has no folder of its own")
    (folder / "python").symlink_to(sys.base_prefix)
    (folder / "venv" / "bin").mkdir(parents=True)
    (folder / "venv" / "bin" / "python").symlink_to(folder / "python" / "bin" / Path(sys._base_executable).name)
    (folder / "venv" / "pyvenv.cfg").write_text(f"home = {folder / 'python' / 'bin'}\n")
    monkeypatch.setattr(sandbox, "COMMAND", (str(folder / "venv" / "bin" / "python"), *sandbox.COMMAND[1:]))
    box = Box("namespaces", str(folder), monkeypatch)
    outcome = box.run("import os, json, sqlite3, sys\nprint(sys.base_prefix, os.path.dirname(os.__file__))")
    place = folder / "python"
    assert outcome.output == f"{place} {place}/lib/python{sys.version_info[0]}.{sys.version_info[1]}\n"


def test_tmp_has_a_size(closed_box):
    program = "for n in range(10):\n  with open(f'file{n}', 'wb') as f: f.write(bytes(15 * 2**20))"
    assert closed_box.run(program).reason == "failed: OSError: [Errno 28] No space left on device"


def test_nothing_of_the_caller_is_inherited(box, folder, monkeypatch):
    monkeypatch.setenv("SECRET", "1")
    with (folder / "open").open("w") as handle:
        os.set_inheritable(handle.fileno(), True)
        program = """
import os, stat, sys
print(dict(os.environ), sys.argv[1:], os.getcwd() == "/")
for n in range(64):
    try: print(n, stat.S_IFMT(os.fstat(n).st_mode) == stat.S_IFSOCK, os.get_inheritable(n))
    except OSError: pass
"""
        environment, *handles = box.run(program).output.splitlines()
    assert environment == f"{sandbox.ENVIRONMENT} [] False"
    assert [line.split()[1:] for line in handles] == [["False", "True"]] * 3 + [["True", "False"]]  # the verdict's


def test_the_program_has_no_privileges_and_every_limit(box):
    program = """
import ctypes, os, resource, signal
print(os.getuid(), os.getgid(), os.getgroups() in ([], [65534]), os.getsid(0) == os.getpid())
print([resource.getrlimit(kind) for kind in (resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE,
       resource.RLIMIT_NPROC, resource.RLIMIT_CORE, resource.RLIMIT_MSGQUEUE, resource.RLIMIT_MEMLOCK, resource.RLIMIT_CPU)])
libc = ctypes.CDLL(None, use_errno=True)
header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
libc.capget(header, sets)
print(list(sets), libc.prctl(39, 0, 0, 0, 0))
"""
    who, limits, privileges = box.run(program, timeout=4.5).output.splitlines()
    user, group, *rest = who.split()
    if box.mode == USER or (box.isolation == "namespaces" and os.getuid() != 0):
        assert user == group == "65534"
    elif os.getuid() == 0:
        assert user == group and 0x70000000 <= int(user) < 0x80000000
    own = box.isolation == "process" and user == str(os.getuid()) != "0"  # the user's groups, too
    assert rest == ["True", "True"] or (own and rest[1] == "True")
    mib, counted = 2**20, 10 if user == "65534" else 8
    assert limits == str([(512 * mib,) * 2, (16 * mib,) * 2, (32, 32), (counted,) * 2, (1, 1), (0, 0), (0, 0), (6, 7)])
    assert privileges == "[0, 0, 0, 0, 0, 0] 1"


def test_no_capabilities_in_a_namespace_of_its_own(closed_box):
    program = """
import ctypes
libc = ctypes.CDLL(None)
user, spaces = 0x10000000, (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x20000000, 0x40000000)
print({libc.unshare(space) for space in (user, *spaces, *(user | space for space in spaces))})
print(libc.mount(b"tmpfs", b"/tmp", b"tmpfs", 0, None))
"""
    assert closed_box.run(program).output == "{-1}\n-1\n"


def test_no_memory_outside_the_limits(box):
    if not FILTERED:
        pytest.skip("the supervisor has no filter of system calls here")
    program = """
import ctypes
libc = ctypes.CDLL(None)
segments = [libc.shmget(0, 100 * 2**20, 0o600) for _ in range(10)]
semaphores, messages = libc.semget(0, 1, 0o600), libc.msgget(0, 0o600)
print({*segments, semaphores, messages, libc.memfd_create(b"", 0)})
for segment in segments: libc.shmctl(segment, 0, None)
libc.semctl(semaphores, 0, 0), libc.msgctl(messages, 0, None)
"""
    assert box.run(program).output == "{-1}\n"


def test_another_architectures_calls_end_the_program(box):
    """getpid by a 32-bit program's number: else its other numbers would pass the filter."""
    if not FILTERED or os.uname().machine != "x86_64":
        pytest.skip("x86_64 has two such sets, and this needs the filter")
    program = """
import ctypes, mmap
page = mmap.mmap(-1, 4096, prot=7)
page.write(b"\\xb8\\x14\\0\\0\\0\\xcd\\x80\\xc3")
print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))())
"""
    assert box.run(program).reason in ("killed: signal 31", "killed: signal 11")  # 11: a kernel without them


@pytest.mark.parametrize("box", ["process"], indirect=True)
def test_the_kernel_short_of_memory_kills_it_first(box):
    assert box.run("print(open('/proc/self/oom_score_adj').read())").output.strip() == "1000"


def test_the_callers_umask_does_not_matter(box):
    before = os.umask(0o077)
    try:
        assert box.run("import json, sqlite3").reason == "passed"
    finally:
        os.umask(before)


def test_it_runs_as_the_reference_does(box):
    """A main guard is skipped, the site module is not there, a set of texts has one order in every run."""
    program = (
        "if __name__ == '__main__': raise SystemExit\nprint({'a', 'b', 'c', 'd'})\ntry: exit\nexcept NameError: pass"
    )
    first, second = box.run(program), box.run(program)
    assert first.passed
    assert first.output == second.output


@pytest.mark.slow
def test_the_canonical_humaneval_solutions_pass(real_data):
    """One after the other, in the protocol's 3 s of wall clock; a busy machine may need a second try."""
    path = real_data / "instruct" / "humaneval" / "HumanEval.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        problems = [json.loads(line) for line in file]
    reasons = {}
    for problem in problems:
        code = problem["prompt"] + problem["canonical_solution"] + "\n" + problem["test"] + "\n"
        program = f"{code}check({problem['entry_point']})"
        try:
            for _ in range(2):
                outcome = sandbox.run(program, allow_code_execution=True, timeout=3.0)
                if outcome.reason != "timed out":
                    break
        except ValueError as error:
            pytest.skip(str(error))
        reasons[problem["task_id"]] = outcome.reason
    assert len(problems) == 164
    assert {task: reason for task, reason in reasons.items() if reason != "passed"} == {}


@pytest.mark.slow
def test_the_protocols_cut_leaves_130_of_the_canonical_solutions(real_data):
    """The ceiling that docs/instructeval.md gives; of the first 20, that of the committed example, 8."""
    path = real_data / "instruct" / "humaneval" / "HumanEval.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        benchmark = build(
            OmegaConf.to_container(compose("instructeval", ["benchmark=humaneval"]).benchmark), "benchmark"
        )
    [subject] = benchmark.read(str(real_data / "instruct")).subjects
    passed = []
    for question in subject.questions:
        try:
            outcome = sandbox.run(program(question, completion(question.target)), allow_code_execution=True)
        except ValueError as error:
            pytest.skip(str(error))
        passed.append(outcome.passed)
    assert (sum(passed), sum(passed[:20]), len(passed)) == (130, 8, 164)


@pytest.mark.parametrize("permission", [False, None, "true", 1])
def test_nothing_runs_without_the_permission(permission, monkeypatch):
    monkeypatch.setattr(sandbox, "COMMAND", ("/bin/false",))
    with pytest.raises(ValueError, match="programs that a model wrote: set allow_code_execution=true"):
        sandbox.run("", allow_code_execution=permission)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"isolation": "none"}, "isolation='none' is not one of namespaces, process"),
        ({"timeout": 0}, "timeout=0 must be a positive"),
        ({"timeout": float("nan")}, "timeout=nan must be a positive"),
    ],
)
def test_a_bad_argument_is_named(argument, message):
    with pytest.raises(ValueError, match=message):
        sandbox.run("", allow_code_execution=True, **argument)


def test_another_system_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ValueError, match="run on Linux only, this is darwin"):
        sandbox.run("", allow_code_execution=True)


def test_where_namespaces_do_not_work_one_line_says_what_would(folder, monkeypatch):
    """The supervisor asks for a namespace that does not exist, which the kernel refuses."""
    change(folder, monkeypatch, ("kernel.NEWNS | kernel.NEWPID", "0x1 | kernel.NEWPID"))
    with pytest.raises(
        ValueError, match=r"^isolation=namespaces does not work here \(unshare: Invalid argument\)"
    ) as error:
        sandbox.run("", allow_code_execution=True)
    assert "isolation=process" in str(error.value) and "\n" not in str(error.value)


def test_root_without_the_right_to_make_namespaces_is_told(monkeypatch):
    if os.getuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("needs root and setpriv")
    without = ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")
    monkeypatch.setattr(sandbox, "COMMAND", (*without, *sandbox.COMMAND))
    with pytest.raises(ValueError, match=r"\(unshare: Operation not permitted\): allow user namespaces"):
        sandbox.run("", allow_code_execution=True)


def test_an_interpreter_that_the_programs_user_cannot_read_is_refused(folder, monkeypatch):
    """Otherwise every program that imports something would fail."""
    change(folder, monkeypatch, ("os.listdir(os.path.dirname(os.__file__))", "os.listdir('/closed')"))
    with pytest.raises(
        ValueError, match=r"process does not work here \(No such file or directory: /closed\): run as an"
    ):
        sandbox.run("", allow_code_execution=True, isolation="process")


def test_a_supervisor_that_breaks_is_no_verdict(monkeypatch):
    monkeypatch.setattr(sandbox, "COMMAND", (sys.executable, "-c", "raise RuntimeError('broken')"))
    with pytest.raises(ValueError, match="RuntimeError: broken"):
        sandbox.run("", allow_code_execution=True)
