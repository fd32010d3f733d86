"""Programs that try to get out or to leave something behind, and ordinary programs that must not notice the sandbox.

All programs of a mode run at once, then the host is compared with what it was before.
"""

import concurrent.futures
import ctypes
import functools
import json
import os
import re
import shutil
import struct
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest
from sandbox_box import FILTERED, MODES, ORDINARY, SYSTEM_PYTHON, Box, change, copied, end, open_folder

from melora_bench.instructeval.sandbox import runner as sandbox
from melora_bench.instructeval.sandbox.system_calls import ARCHITECTURES, filter_for, numbers

USER_ID = 54321  # of ORDINARY
OWN = "process of an ordinary user"  # the caller, too, is an ordinary user, the program's own
ONE_ID = ("unshare", "--user", "--map-root-user")  # root of a container that has no other id
ALONE = [OWN] if os.getuid() == 0 else []
LANDLOCK = ctypes.CDLL(None).syscall(444, None, 0, 1) >= 6  # Linux 6.12: signals stay inside
MACHINE = os.uname().machine
QUICK = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # a disk may take a second for 300 folders

DRIVER = """
import dataclasses, json, sys, tempfile
copy, tempfile.tempdir, supervisor = sys.argv[1:]
sys.path.insert(0, copy)
from melora_bench.instructeval.sandbox import runner as sandbox
sandbox.COMMAND = (*sandbox.COMMAND[:-1], supervisor or sandbox.COMMAND[-1])
for line in sys.stdin:
    try:
        answer = dataclasses.asdict(sandbox.run(allow_code_execution=True, **json.loads(line)))
    except ValueError as error:
        answer = str(error)
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def folder(monkeypatch):
    with open_folder(monkeypatch) as path:
        yield path


class Caller:
    """sandbox.run in a process of an ordinary user, in a folder that is his."""

    def __init__(self, folder: Path, *prefix: str, supervisor: str = ""):
        if not shutil.which("setpriv") or not Path(SYSTEM_PYTHON).exists():
            pytest.skip(f"needs setpriv and {SYSTEM_PYTHON}")
        place, copy = folder / "own", folder / "copy"
        if not copy.exists():
            package = copy / "melora_bench" / "instructeval"
            shutil.copytree(Path(sandbox.__file__).parent, package / "sandbox", ignore=lambda *_: ["__pycache__"])
            (package / "__init__.py").write_text("")
            (package.parent / "__init__.py").write_text("")
            for path in [copy, *copy.rglob("*")]:
                path.chmod(0o755)
            place.mkdir()
            os.chown(place, USER_ID, USER_ID)
        self.process = subprocess.Popen(
            [*ORDINARY, *prefix, SYSTEM_PYTHON, "-c", DRIVER, str(copy), str(place), supervisor],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
        )
        self.one_after_another = threading.Lock()

    def run(self, program: str, timeout: float = 20.0, isolation: str = "process") -> sandbox.Outcome:
        with self.one_after_another:
            request = {"program": program, "timeout": timeout, "isolation": isolation}
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            answer = json.loads(self.process.stdout.readline())
        if isinstance(answer, str):
            raise ValueError(answer)
        return sandbox.Outcome(**answer)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.communicate()


def traces() -> set[tuple]:
    """What the ids that programs run with have on this machine: processes, files, queues, memory, listening sockets."""
    found = set()

    def theirs(uid: int) -> bool:
        return uid == USER_ID or 0x70000000 <= uid < 0x80000000

    for path in (
        *Path("/proc").glob("[0-9]*"),
        *Path("/dev/shm").glob("*"),
        *Path("/tmp").glob("*"),
        *Path("/var/tmp").glob("*"),
    ):
        try:
            if theirs(path.stat().st_uid):
                found.add(("file", str(path)))
        except OSError:
            pass
    for name in ("shm", "sem", "msg"):
        header, *lines = (Path("/proc/sysvipc") / name).read_text().splitlines()
        column = header.split().index("uid")
        found |= {(name, line.split()[1]) for line in lines if theirs(int(line.split()[column]))}
    for name in ("tcp", "tcp6", "udp", "udp6"):
        for line in (Path("/proc/net") / name).read_text().splitlines()[1:]:
            if theirs(int(line.split()[7])):
                found.add((name, line.split()[1]))
    if os.getuid() == 0 and shutil.which("unshare"):
        show = "mount -t mqueue none /tmp && ls -n /tmp"
        listing = subprocess.run(["unshare", "--mount", "sh", "-c", show], capture_output=True, text=True).stdout
        found |= {("mqueue", line.split()[-1]) for line in listing.splitlines()[1:]}
    found |= {("mount", line.split()[4]) for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    return found


CALL = """
import ctypes, errno, os, struct
libc = ctypes.CDLL(None, use_errno=True)
def call(*arguments):
    ctypes.set_errno(0)
    done = libc.syscall(*arguments)
    return done if done >= 0 else errno.errorcode[ctypes.get_errno()]
"""
# {name: (its number on x86_64, on aarch64, arguments with which it would do something)}
REFUSED = {
    "io_uring_setup": (425, 425, "4, bytes(120)"),
    "memfd_create": (319, 279, "b'x', 0"),
    "memfd_secret": (447, 447, "0"),
    "mq_open": (240, 180, "b'melora_sandbox_test', 0o102, 0o600, None"),
    "userfaultfd": (323, 282, "1"),
    "bpf": (321, 280, "0, bytes(128), 128"),
    "perf_event_open": (298, 241, "struct.pack('II104x', 1, 112), 0, -1, -1, 0"),
    "inotify_init1": (294, 26, "0"),
    "fanotify_init": (300, 262, "0x200, 0"),
    "syslog": (103, 116, "10, None, 0"),
    "keyctl": (250, 219, "0, -3, 1"),
    "add_key": (248, 217, "b'user', b'x', b'y', 1, -1"),
    "request_key": (249, 218, "b'user', b'x', None, -1"),
    "shmget": (29, 194, "0, 4096, 0o600"),
    "semget": (64, 190, "0, 1, 0o600"),
    "msgget": (68, 186, "0, 0o600"),
    "ptrace": (101, 117, "0, 0, None, None"),
    "process_vm_readv": (310, 270, "os.getpid(), None, 0, None, 0, 0"),
    "process_vm_writev": (311, 271, "os.getpid(), None, 0, None, 0, 0"),
    "process_madvise": (440, 440, "-1, None, 0, 0, 0"),
    "pidfd_getfd": (438, 438, "os.pidfd_open(os.getpid()), 0, 0"),
    "kcmp": (312, 272, "os.getpid(), os.getpid(), 1, 0, 0"),
    "unshare": (272, 97, "0x10000000"),
    "setns": (308, 268, "os.pidfd_open(os.getpid()), 0x20000"),
    "clone3": (435, 435, "struct.pack('Q24xQ48x', 0x10000000, 17), 88"),
    "mount": (165, 40, "b'tmpfs', b'/tmp', b'tmpfs', 0, None"),
    "umount2": (166, 39, "b'/tmp', 2"),
    "pivot_root": (155, 41, "b'/tmp', b'/tmp'"),
    "chroot": (161, 51, "b'/tmp'"),
    "fsopen": (430, 430, "b'tmpfs', 0"),
    "open_tree": (428, 428, "-100, b'/tmp', 1"),
    "move_mount": (429, 429, "-100, b'/tmp', -100, b'/tmp', 0"),
    "mount_setattr": (442, 442, "-100, b'/tmp', 0, bytes(32), 32"),
    "name_to_handle_at": (303, 264, "-100, b'/tmp', struct.pack('I132x', 128), bytes(4), 0"),
    "open_by_handle_at": (304, 265, "3, bytes(136), 0"),
    "personality": (135, 92, "0xffffffff"),
    "modify_ldt": (154, None, "0, bytes(16), 16"),
    "quotactl": (179, 60, "0, None, 0, None"),
    "vmsplice": (278, 75, "os.pipe()[1], None, 0, 0"),
    "io_setup": (206, 0, "1, bytes(8)"),
    "setuid": (105, 146, "os.getuid()"),
    "setgid": (106, 144, "os.getgid()"),
    "setresuid": (117, 147, "-1, -1, -1"),
    "setgroups": (116, 159, "0, None"),
    "capset": (126, 91, "struct.pack('II', 0x20080522, 0), bytes(24)"),
    "mlock": (149, 228, "None, 0"),
    "mlockall": (151, 230, "1"),
    "sched_setscheduler": (144, 119, "0, 3, bytes(4)"),
    "ioprio_set": (251, 30, "1, 0, 0x4000"),
    "mbind": (237, 235, "None, 0, 0, None, 0, 0"),
    "init_module": (175, 105, "None, 0, b''"),
    "kexec_load": (246, 104, "0, 0, None, 0"),
    "reboot": (169, 142, "0, 0, 0, None"),
    "settimeofday": (164, 170, "None, None"),
    "sethostname": (170, 161, "b'x', 1"),
    "seccomp": (317, 277, "2, 0, bytes(4)"),
}
ASKED = {
    name: (x86 if MACHINE == "x86_64" else arm, arguments)
    for name, (x86, arm, arguments) in REFUSED.items()
    if FILTERED and (MACHINE == "x86_64" or arm is not None)
}
ANSWERS = ", ".join(f"'{name}': call({number}, {arguments})" for name, (number, arguments) in ASKED.items())
ALL_CALLS = f"{CALL}import json\nprint(json.dumps({{{ANSWERS}}}))"
# Those of uprobes pass every filter and end a process that is not probed.
OTHERS = set(range(600)) - set(numbers(MACHINE).values()) - {335, 336} if FILTERED else {600}
EVERY_OTHER = f"{CALL}print({{call(number, -1, -1, -1, -1, -1, -1) for number in {OTHERS}}})"
HOSTILE = {  # name: (program, start of the reason, the whole output or None)
    "VSOCK and other families": (
        """
import socket
made = set()
for family in range(64):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET, socket.SOCK_RAW):
        for make in (socket.socket, socket.socketpair):
            try: make(family, kind)
            except OSError: pass
            else: made.add(family)
print(made <= {1, 2, 10, 16})
try: socket.socket(40, socket.SOCK_STREAM)
except OSError as error: print(error.errno)
""",
        "passed",
        "True\n97\n",
    ),
    "raw socket": ("import socket\nsocket.socket(socket.AF_INET, socket.SOCK_RAW, 1)", "failed: PermissionError", ""),
    "netlink sets an interface up": (
        """
import socket, struct
link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
link.send(struct.pack("IHHIIBxHiII", 32, 16, 5, 1, 0, 0, 0, 1, 1, 1))
print(struct.unpack("i", link.recv(4096)[16:20])[0])
""",
        "passed",
        "-1\n",
    ),
    "clone into namespaces": (
        CALL + f"print({{call({56 if MACHINE == 'x86_64' else 220}, 1 << bit | 17, 0, 0, 0, 0) "
        "for bit in (17, 25, 26, 27, 28, 29, 30)})",
        "passed",
        "{'EPERM'}\n",
    ),
    "every call that is not on the list": (EVERY_OTHER, "passed", "{'ENOSYS'}\n"),
    "a call by its x32 number": (f"{CALL}print(call(2**30 + 39))", "passed", "ENOSYS\n"),
    "nested folders": (
        "import os\nfor _ in range(3000):\n  os.mkdir('d')\n  os.chdir('d')\nprint('made')",
        "passed",
        "made\n",
    ),
    "unreadable folders": (
        "import os\nos.makedirs('a/b/c')\nopen('a/b/c/d', 'w').close()\nfor d in ('a/b/c', 'a/b', 'a'): os.chmod(d, 0)",
        "passed",
        "",
    ),
    "links out of the folder": (
        "import os\nfor n, to in enumerate(('/', '/usr', '..', '../..')): os.symlink(to, f'link{n}')",
        "passed",
        "",
    ),
    "signals to the parents": (
        """
import os, signal
def parents(pid):
    try: text = open(f"/proc/{pid}/stat").read()
    except OSError: return []
    parent = int(text.rpartition(")")[2].split()[1])
    return [parent, *parents(parent)] if parent > 1 else []
targets = {os.getppid(), 1, *parents(os.getpid())}
for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGKILL, *range(1, 65)):
    for pid in targets:
        try: os.kill(pid, number)
        except OSError: pass
""",
        "passed",
        "",
    ),
    "signals to everybody": (
        "import os, signal\nfor n in (signal.SIGSTOP, signal.SIGTERM, signal.SIGKILL):\n  try: os.kill(-1, n)\n"
        "  except OSError: pass",
        "passed",
        "",
    ),
    "a signal by a pipe's owner": (
        """
import fcntl, os, signal, time
for owner in {os.getppid(), 1}:
    end, other = os.pipe()
    try:
        fcntl.fcntl(end, fcntl.F_SETOWN, owner)
        fcntl.fcntl(end, 10, signal.SIGKILL)
        fcntl.fcntl(end, fcntl.F_SETFL, os.O_ASYNC)
        os.write(other, b"x")
    except OSError: pass
time.sleep(0.2)
""",
        "passed",
        "",
    ),
    "limits of the parent": (
        "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))",
        "failed: PermissionError",
        "",
    ),
    "limits raised": (
        "import resource\nresource.setrlimit(resource.RLIMIT_NPROC, (99, 99))",
        "failed: ValueError: not allowed to raise",
        "",
    ),
    "nice of the parent": (
        "import os\nos.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
        "failed: PermissionError",
        "",
    ),
    "nice of the user": ("import os\nos.setpriority(os.PRIO_USER, 0, 19)", "failed: PermissionError", ""),
    "processors of the parent": ("import os\nos.sched_setaffinity(os.getppid(), {0})", "failed: PermissionError", ""),
    "memory of the parents": (
        """
import os
found = []
for pid in (os.getppid(), 1):
    for name in ("mem", "environ", "maps", "fd/0", "root/etc/shadow"):
        try: found.append(open(f"/proc/{pid}/{name}", "rb").read(1))
        except OSError: pass
print(found)
""",
        "passed",
        "[]\n",
    ),
    "every descriptor": (
        "import os\nheld = []\nwhile True: held.append(os.open('/dev/null', os.O_RDONLY))",
        "failed: OSError: [Errno 24]",
        "",
    ),
    "threads without end": (
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
        "failed: RuntimeError: can't start new thread",
        "",
    ),
    "processes that ignore signals": (
        """
import os, signal, time
for _ in range(3):
    try:
        if os.fork() == 0:
            for n in range(1, 65):
                try: signal.signal(n, signal.SIG_IGN)
                except (OSError, ValueError): pass
            os.setsid()
            while True: time.sleep(1)
    except BlockingIOError: pass
""",
        "passed",
        "",
    ),
    "it stops itself": ("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", "timed out", ""),
    "shared memory": ("import mmap\nmmap.mmap(-1, 2**30)", "failed: OSError: [Errno 12]", ""),
    "a file of a terabyte": ("open('big', 'wb').truncate(10**12)", "failed: OSError: [Errno 27]", ""),
    "a great pipe": ("import fcntl, os\nfcntl.fcntl(os.pipe()[1], 1031, 2**30)", "failed: PermissionError", ""),
    "a device": (
        "import os, stat\nos.mknod('sda', 0o600 | stat.S_IFBLK, os.makedev(8, 0))",
        "failed: PermissionError",
        "",
    ),
    "a file of another user": (
        "import os\nopen('a', 'w').close()\ntry: os.chown('a', 1, 1)\nexcept OSError: print('no')",
        "passed",
        "no\n",
    ),
    "a program that changes the user": (
        """
import os, subprocess
for path in ("/usr/bin/su", "/usr/bin/passwd", "/usr/bin/mount", "/usr/bin/newuidmap"):
    try: subprocess.run([path, "--help"], capture_output=True, timeout=5)
    except (OSError, subprocess.SubprocessError): pass
print(sum(map(int, open("/proc/self/status").read().partition("CapEff:")[2].split()[0])) if os.path.exists("/proc") else 0)
""",
        "passed",
        "0\n",
    ),
    "an abort": ("import os\nos.abort()", "killed: signal 6", ""),
    "a timer": (
        "import signal, time\nsignal.setitimer(signal.ITIMER_REAL, 0.01)\ntime.sleep(9)",
        "killed: signal 14",
        "",
    ),
    "a timer of profiling": (
        "import signal\nsignal.setitimer(signal.ITIMER_PROF, 0.01)\nwhile True: pass",
        "killed: signal 27",
        "",
    ),
    "an interpreter in its place": (
        "import os, sys\nos.execv(sys.base_prefix + '/bin/python3', ['python', '-S', '-c', 'print(1)'])",
        "exited: status 0",
        "1\n",
    ),
    "an alarm that leaves": (
        "import os, signal, time\nsignal.signal(signal.SIGALRM, lambda *_: os._exit(0))\nsignal.setitimer(0, 0.1)\n"
        "time.sleep(9)",
        "exited: status 0",
        "",
    ),
    "a flood of errors": ("import os\nfor _ in range(200): os.write(2, b'x' * 10_000)", "passed", "x" * 16_384),
    "closed output": ("import os\nos.close(1)\nos.close(2)\nassert 0", "failed: AssertionError", ""),
    "no death with the parent": (
        CALL + "print(libc.prctl(1, 0, 0, 0, 0), libc.prctl(38, 0, 0, 0, 0))",
        "passed",
        "0 -1\n",
    ),
    "the supervisor's memory": ("import os\nopen(f'/proc/{os.getppid()}/mem', 'r+b')", "failed: ", ""),
}
BENIGN = {
    "threads": "import threading\nall = [threading.Thread(target=print) for _ in range(3)]\n"
    "for t in all: t.start()\nfor t in all: t.join()",
    "a pool of threads": "from concurrent.futures import ThreadPoolExecutor as P\nassert sum(P(3).map(abs, [-1, 2])) == 3",
    "subprocesses": "import subprocess, sys\nassert subprocess.run(['/bin/true']).returncode == 0\n"
    "assert subprocess.check_output([sys.base_prefix + '/bin/python3', '-S', '-c', 'print(1)']) == b'1\\n'\n"
    "p = subprocess.Popen(['/bin/sleep', '9'])\np.kill()\nassert p.wait() == -9",
    "a process of multiprocessing": "import multiprocessing as m\np = m.get_context('fork').Process(target=print)\np.start()\n"
    "p.join()\nassert p.exitcode == 0",
    "files": "import os, shutil, tempfile\nwith tempfile.TemporaryDirectory() as d:\n  os.makedirs(d + '/a/b')\n"
    "  open(d + '/a/b/c', 'w').write('1')\n  shutil.copytree(d + '/a', d + '/e')\n  os.rename(d + '/a/b/c', d + '/e/c')\n"
    "  shutil.copy2(d + '/e/c', d + '/f')\n  shutil.move(d + '/f', d + '/g')\n  os.link(d + '/g', d + '/h')\n"
    "  os.utime(d + '/g')\n  os.truncate(d + '/g', 0)\n  shutil.make_archive(d + '/z', 'gztar', d + '/e')",
    "locks and pipes": "import fcntl, os, select\na, b = os.pipe()\nos.write(b, b'x')\nassert select.select([a], [], [], 1)\n"
    "p = select.epoll()\np.register(a)\nassert p.poll(1)\nf = open('lock', 'w')\nfcntl.flock(f, 2)\nfcntl.lockf(f, 2)\n"
    "os.mkfifo('fifo')\nq = select.poll()\nq.register(a)\nassert q.poll(9)",
    "a loop of coroutines": "import asyncio\nasync def f():\n  await asyncio.sleep(0.01)\n  p = await "
    "asyncio.create_subprocess_exec('/bin/echo', 'a', stdout=-1)\n  return (await p.communicate())[0]\n"
    "assert asyncio.run(f()) == b'a\\n'",
    "sockets": "import socket, threading\na, b = socket.socketpair()\na.send(b'1')\nassert b.recv(1) == b'1'\n"
    "s = socket.socket(socket.AF_UNIX)\ns.bind('s')\ns.listen()\n"
    "t = threading.Thread(target=lambda: s.accept()[0].send(b'2'))\nt.start()\nc = socket.socket(socket.AF_UNIX)\n"
    "c.connect('s')\nassert c.recv(1) == b'2'\nt.join()\n"
    "socket.create_server(('', 0))\nsocket.socket(socket.AF_INET6)\nsocket.gethostname()",
    "time": "import datetime, time, zoneinfo\nt = time.perf_counter(), time.process_time(), time.thread_time(), time.time()\n"
    "time.sleep(0.01)\nassert time.perf_counter() > t[0]\ntime.localtime(), datetime.datetime.now().astimezone()\n"
    "try: zoneinfo.ZoneInfo('Europe/Berlin')\nexcept zoneinfo.ZoneInfoNotFoundError: pass",
    "signals": "import signal, os\nseen = []\nsignal.signal(signal.SIGALRM, lambda *_: seen.append(1))\n"
    "signal.setitimer(signal.ITIMER_REAL, 0.01)\nsignal.pause()\nsignal.pthread_sigmask(0, [10])\nos.kill(os.getpid(), 10)\n"
    "assert signal.sigwait([10]) == 10 and seen\nimport faulthandler\nsignal.raise_signal(signal.SIGALRM)",
    "a database": "import sqlite3\nd = sqlite3.connect('a.db')\nd.execute('pragma journal_mode=wal')\n"
    "d.execute('create table t (a)')\nd.execute('insert into t values (1)')\nd.commit()\n"
    "assert d.execute('select * from t').fetchall() == [(1,)]",
    "mapped memory": "import mmap\nm = mmap.mmap(-1, 2**20)\nm[0] = 1\nm.resize(2**21)\nm.madvise(mmap.MADV_DONTNEED)\n"
    "f = open('f', 'w+b')\nf.truncate(4096)\nn = mmap.mmap(f.fileno(), 4096)\nn[0] = 2\nn.flush()",
    "what is known of itself": "import os, platform, resource, sys, sysconfig\nos.getloadavg, os.cpu_count(), os.uname()\n"
    "platform.platform(), resource.getrusage(0), os.times(), os.getpriority(0, 0), os.sched_getaffinity(0), os.nice(1)\n"
    "os.sched_setaffinity(0, os.sched_getaffinity(0)), resource.setrlimit(resource.RLIMIT_CORE, (0, 0)), os.getgroups()\n"
    "os.getresuid(), os.getsid(0), os.getpgid(0), os.umask(0), os.statvfs('/tmp'), sysconfig.get_paths()",
    "texts and numbers": "import base64, bz2, decimal, fractions, gzip, hashlib, json, lzma, random, re, secrets, uuid, zlib\n"
    "assert hashlib.sha256(b'').hexdigest()[:4] == 'e3b0'\nassert json.loads(json.dumps({'a': [1]})) == {'a': [1]}\n"
    "assert gzip.decompress(gzip.compress(b'a')) == lzma.decompress(lzma.compress(b'a')) == b'a'\nuuid.uuid4(), uuid.uuid1()\n"
    "hashlib.scrypt(b'a', salt=b'b', n=16, r=8, p=1)\nassert decimal.Decimal(1) / 3 != fractions.Fraction(1, 3)",
    "a C function": "import ctypes\nassert ctypes.CDLL(None).abs(-3) == 3\n"
    "@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)\ndef f(x): return x + 1\nassert f(1) == 2",
}


@functools.cache
def all_outcomes(mode: str) -> tuple[dict[str, sandbox.Outcome | str], set[tuple]]:
    """({program: its outcome}, what is new on the host) of HOSTILE and BENIGN; a text says why the mode is skipped."""
    programs = {**{name: each[0] for name, each in HOSTILE.items()}, **BENIGN, "all calls": ALL_CALLS}
    with tempfile.TemporaryDirectory(prefix="sandbox_test_", dir=QUICK) as name, pytest.MonkeyPatch.context() as patch:
        os.chmod(name, 0o755)
        patch.setattr(tempfile, "tempdir", name)
        before = traces()
        try:
            runner = Caller(Path(name)) if mode == OWN else Box(mode, name, patch)
        except pytest.skip.Exception as reason:
            return {each: str(reason) for each in programs}, set()

        def run(program: str) -> sandbox.Outcome:
            return runner.run(program, 0.5 if "SIGSTOP)" in program else 20.0)

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            outcomes = dict(zip(programs, pool.map(run, programs.values()), strict=True))
        if mode == OWN:
            runner.process.communicate()
        left = {("left", str(path)) for path in Path(name).rglob(f"{sandbox.FOLDER}*")}
        if mode != OWN and runner.processes():
            left.add(("processes", str(runner.processes())))
            end(runner)
        deadline = time.monotonic() + 10
        while (new := traces() - before) and time.monotonic() < deadline:
            time.sleep(0.2)  # a busy machine takes a while to bury a killed process
        return outcomes, left | new


def outcome_of(mode: str, name: str) -> sandbox.Outcome:
    found = all_outcomes(mode)[0][name]
    return pytest.skip(found) if isinstance(found, str) else found


@pytest.mark.parametrize("mode", [*MODES, *ALONE])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_is_contained(mode, name):
    _, reason, output = HOSTILE[name]
    if mode == OWN and not LANDLOCK and "signal" in name:
        pytest.skip("before Linux 6.12, a program may signal its user's processes")
    outcome = outcome_of(mode, name)
    assert outcome.reason.startswith(reason), outcome
    assert output is None or outcome.output == output, outcome


@pytest.mark.parametrize("mode", [*MODES, *ALONE])
@pytest.mark.parametrize("name", ASKED)
def test_a_call_that_no_program_needs_is_refused(mode, name):
    """With arguments that the kernel would take: io_uring makes sockets, memfd_secret memory that no limit counts."""
    assert json.loads(outcome_of(mode, "all calls").output)[name] == "ENOSYS"


@pytest.mark.parametrize("mode", [*MODES, *ALONE])
@pytest.mark.parametrize("name", BENIGN)
def test_an_ordinary_program_notices_nothing(mode, name):
    outcome = outcome_of(mode, name)
    full = outcome.reason.startswith(("failed: BlockingIOError", "failed: RuntimeError: can't start new thread"))
    if mode == "process" and os.getuid() != 0 and full:
        pytest.skip("here the user's other processes count against the limit, and no program can fork")
    assert outcome.reason == "passed", outcome


@pytest.mark.parametrize("mode", [*MODES, *ALONE])
def test_nothing_is_left_on_the_host(mode):
    outcomes, new = all_outcomes(mode)
    assert new == set()
    outcome_of(mode, next(iter(outcomes)))


def test_what_the_filter_refuses_is_there_without_it(folder, monkeypatch):
    """The arguments above are good: without the filter, these calls do something."""
    if not FILTERED:
        pytest.skip("the supervisor has no filter of system calls here")
    box = Box("process", str(folder), monkeypatch)
    change(folder, monkeypatch, ("prctl(kernel.SECCOMP,", "max("))
    answers = json.loads(box.run(ALL_CALLS).output)
    done = {name for name, answer in answers.items() if not isinstance(answer, str)}
    assert {"memfd_create", "ptrace", "process_vm_readv", "personality", "setresuid"} <= done
    assert answers["mq_open"] in ("EMFILE", "ENOSYS")  # the limit alone: a queue would outlive the program


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_the_numbers_are_the_kernels(machine):
    header = Path(
        "/usr/include", {"x86_64": "x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "asm-generic/unistd.h"}[machine]
    )
    if not header.is_file():
        pytest.skip(f"needs {header}")
    lines = re.findall(r"#define __NR_?(\w+)\s+(\d+)$", header.read_text(), re.MULTILINE)
    known = {name.removeprefix("3264_"): int(number) for name, number in lines}
    if machine == "aarch64":
        known["newfstatat"] = known["fstatat"]
    ours = numbers(machine)
    assert {name: (number, known[name]) for name, number in ours.items() if known.get(name, number) != number} == {}
    assert len(set(ours.values())) == len(ours)
    assert set(ours) - set(known) <= {"fchmodat2"}  # of Linux 6.6
    tried = {name: both[machine == "aarch64"] for name, (*both, _) in REFUSED.items()}
    tried = {name: number for name, number in tried.items() if number is not None}
    assert tried == {name: known[name] for name in tried}
    assert set(tried) & set(ours) == set()


def decision(code: bytes, architecture: int, number: int, *arguments: int) -> int:
    """What a filter answers to a call, by the rules of the kernel's Documentation/networking/filter.rst."""
    data = struct.pack("IIQ6Q", number, architecture, 0, *[*arguments, *[0] * 6][:6])
    value, place = 0, 0
    while True:
        operation, if_so, if_not, k = struct.unpack_from("HBBI", code, 8 * place)
        place += 1
        match operation:
            case 0x20:
                [value] = struct.unpack_from("I", data, k)
            case 0x15:
                place += if_so if value == k else if_not
            case 0x45:
                place += if_so if value & k else if_not
            case 0x06:
                return k


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_the_filters_answers_to_every_call(machine):
    allow, no_call, no_family, not_permitted, kill = 0x7FFF0000, 0x50026, 0x50061, 0x50001, 0x80000000
    known = numbers(machine)
    answer = functools.partial(decision, filter_for(machine), ARCHITECTURES[machine])
    limited = {known[name]: not_permitted for name in ("prlimit64", "sched_setaffinity", "setpriority")}
    for number in (*range(1000), 2**30, 2**30 + 1, 2**32 - 1):
        expected = limited.get(number, allow if number in known.values() else no_call)
        assert answer(number, 1) == expected, number
    for name in ("socket", "socketpair"):
        assert {family for family in range(100) if answer(known[name], family) == allow} == {1, 2, 10, 16}
        assert answer(known[name], 40) == answer(known[name], 2**32 + 40) == no_family
    namespaces = {bit for bit in range(32) if answer(known["clone"], 17 | 1 << bit) == not_permitted}
    assert namespaces == {17, 25, 26, 27, 28, 29, 30}
    assert answer(known["prlimit64"], 0, 5) == answer(known["sched_setaffinity"], 0, 5) == allow
    assert answer(known["setpriority"], 0, 0, 5) == allow
    assert answer(known["setpriority"], 0, 7, 5) == not_permitted
    for other in {0x40000003, *ARCHITECTURES.values()} - {ARCHITECTURES[machine]}:
        assert decision(filter_for(machine), other, known["read"]) == kill
    assert filter_for("riscv64") == b""


def test_the_filter_takes_no_module_away(folder, monkeypatch):
    """What of the standard library can be imported is the same with and without it."""
    program = """
import sys
left_out = {"antigravity", "idlelib", "this", "turtledemo", "__main__", "test", "lib2to3"}
for name in sorted(sys.stdlib_module_names - left_out):
    try: __import__(name)
    except BaseException as error: print(name, type(error).__name__)
"""
    box = Box("namespaces", str(folder), monkeypatch)
    with_filter = box.run(program)
    change(folder, monkeypatch, ("prctl(kernel.SECCOMP,", "max("))
    assert with_filter.reason == "passed"
    assert with_filter.output == box.run(program).output


SEVEN = """
import os, threading, time
for _ in range(7): threading.Thread(target=time.sleep, args=(1,)).start()
print(os.getuid())
"""


@pytest.mark.parametrize("mode", MODES)
def test_sixteen_programs_at_once_do_not_share_a_limit(mode, folder, monkeypatch):
    if os.getuid() != 0 and mode == "process":
        pytest.skip("isolation=process runs an ordinary user's program as that user")
    box = Box(mode, str(folder), monkeypatch)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        outcomes = list(pool.map(box.run, [SEVEN] * 16))
    assert {outcome.reason for outcome in outcomes} == {"passed"}
    if os.getuid() == 0 and mode in sandbox.ISOLATIONS:
        assert len({outcome.output for outcome in outcomes}) == 16
        assert all(0x70000000 <= int(outcome.output) < 0x80000000 for outcome in outcomes)


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root")
WHO = """
count = 0
try:
    while count < 20:
        if os.fork() == 0:
            import time
            time.sleep(9)
        count += 1
except OSError: pass
header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
libc.capget(header, sets)
print(os.getuid(), os.getgid(), count < 8, list(sets))
"""


@needs_root
@pytest.mark.parametrize(("isolation", "user"), [("namespaces", 65534), ("process", 0)])
def test_root_of_a_container_with_one_id_is_an_ordinary_user(isolation, user, folder):
    if subprocess.run([*ORDINARY, *ONE_ID, "true"]).returncode != 0:
        pytest.skip("needs user namespaces")
    with Caller(folder, *ONE_ID) as caller:
        outcome = caller.run(CALL + WHO, isolation=isolation)
        assert (outcome.reason, outcome.output) == ("passed", f"{user} {user} True [0, 0, 0, 0, 0, 0]\n")
        assert caller.run("assert 0", isolation=isolation).reason == "failed: AssertionError"


@needs_root
@pytest.mark.parametrize("isolation", sandbox.ISOLATIONS)
def test_root_whom_no_limit_binds_is_told(isolation, monkeypatch):
    """The machine's root in a namespace that has no other id: the kernel lets it fork without end."""
    if subprocess.run([*ONE_ID, "true"]).returncode != 0:
        pytest.skip("needs user namespaces")
    monkeypatch.setattr(sandbox, "COMMAND", (*ONE_ID, *sandbox.COMMAND))
    with pytest.raises(ValueError, match=r"\(no limit on processes binds the machine's root: .* or map more ids\)"):
        sandbox.run("", allow_code_execution=True, isolation=isolation)


@needs_root
@pytest.mark.parametrize(
    ("mapped", "low", "high"),
    [
        ("0 0 65536", 20_000, 60_000),
        ("0 0 4294967295", 0x70000000, 0x80000000),
    ],
)
def test_the_id_is_one_that_is_mapped(mapped, low, high, folder, monkeypatch):
    change(folder, monkeypatch, ("for line in file]\n    return any", f"for line in [{mapped!r}]]\n    return any"))
    outcome = Box("namespaces", str(folder), monkeypatch).run("import os\nprint(os.getuid())")
    assert low <= int(outcome.output) < high


@pytest.mark.parametrize("mode", ["process", *ALONE])
def test_what_a_link_points_to_outlives_the_cleanup(mode, folder, monkeypatch):
    victim = folder / "victim"
    victim.mkdir()
    (victim / "file").write_text("kept")
    for path, bits in ((victim / "file", 0o400), (victim, 0o500)):
        path.chmod(bits)
        if os.getuid() == 0:
            os.chown(path, USER_ID, USER_ID)
    box = Caller(folder) if mode == OWN else Box(mode, str(folder), monkeypatch)
    links = f"import os\nos.symlink({str(victim)!r}, 'a')\nos.mkdir('b')\nos.symlink({str(victim)!r}, 'b/c')"
    assert box.run(links).passed
    assert (victim / "file").read_text() == "kept"
    assert [path.stat().st_mode & 0o777 for path in (victim, victim / "file")] == [0o500, 0o400]
    assert list(folder.rglob(f"{sandbox.FOLDER}*")) == []
    if mode == OWN:
        box.process.communicate()


def test_a_folder_that_cannot_be_removed_is_a_warning(folder, monkeypatch, caplog):
    box, popen = Box("process", str(folder), monkeypatch), subprocess.Popen

    def without_rm(command, *rest, **options):
        if command[0] in ("chmod", "rm"):
            raise FileNotFoundError(2, "No such file or directory", command[0])
        return popen(command, *rest, **options)

    monkeypatch.setattr(subprocess, "Popen", without_rm)
    assert box.run("open('a', 'w')").passed
    [left] = folder.glob(f"{sandbox.FOLDER}*")
    assert [message for message in caplog.messages if str(left) in message and "No such file" in message] != []


@needs_root
def test_a_stopped_supervisor_still_ends_the_programs_processes(folder):
    """As before Linux 6.12, where a program may stop it: it is woken, not waited for."""
    copy = copied(folder / "stoppable", ("    enter_domain()\n", ""))
    program = """
import os, signal, time
if os.fork() == 0:
    os.setsid()
    time.sleep(60)
os.kill(os.getppid(), signal.SIGSTOP)
"""
    with Caller(folder, supervisor=str(copy)) as caller:
        start = time.monotonic()
        assert caller.run(program).passed
        assert time.monotonic() - start < sandbox.END_SECONDS
    assert {name for kind, name in traces() if kind == "file" and name.startswith("/proc")} == set()
