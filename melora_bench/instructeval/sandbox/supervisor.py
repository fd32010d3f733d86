"""The sandbox's inner side: a script of the standard library alone that `sandbox.run` starts, never imported.

It reads the program from stdin and the filter of system calls from its socket, takes away what a program must not have,
forks, and runs the program in the fork. On the socket the host gets READY (or one line that says what cannot be set
up), then the verdict of the first that has one: the program's process, or the supervisor when that process ended
without a word.
"""

import contextlib
import ctypes
import errno
import glob
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable

READY = b"ready"
NOBODY = 65534  # the user and group that the program runs as, where the kernel maps but one id
# Ids that nobody has: above those that systemd gives to containers; and, where these are not mapped, some of a
# container's.
FREE = (range(0x70000000, 0x80000000), range(20_000, 60_000))
MIB = 2**20
LIMITS = {  # of each process, except NPROC: of all together
    resource.RLIMIT_AS: 512 * MIB,
    resource.RLIMIT_FSIZE: 16 * MIB,
    resource.RLIMIT_NOFILE: 32,
    resource.RLIMIT_NPROC: 8,
    resource.RLIMIT_CORE: 1,  # a byte is no core dump; 0 would still start a handler that core_pattern names
    resource.RLIMIT_MSGQUEUE: 0,
    resource.RLIMIT_MEMLOCK: 0,
}
DISK = "size=32m,nr_inodes=4096"  # of /tmp, in memory
SYSTEM = ("/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
KEYCTL = {"x86_64": 250, "aarch64": 219}  # the call's number

# linux/sched.h, linux/mount.h, linux/prctl.h, linux/capability.h, linux/keyctl.h, linux/seccomp.h, linux/landlock.h
NEWNS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x00020000, 0x08000000, 0x10000000, 0x20000000, 0x40000000
RDONLY, NOSUID, NODEV, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
LOCKED = 15  # the flags of a mount that a user namespace may not take back: ro, nosuid, nodev, noexec
DETACH = 2
PDEATHSIG, DUMPABLE, SECCOMP, SUBREAPER, NO_NEW_PRIVS = 1, 4, 22, 36, 38
CAPABILITY_VERSION_3 = 0x20080522
JOIN_SESSION_KEYRING = 1
FILTER = 2
CREATE_RULESET, RESTRICT_SELF = 444, 446
VERSION = 1
SCOPES = 3  # abstract sockets and signals

libc = ctypes.CDLL(None, use_errno=True)
libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4


def call(function: Callable, *arguments: int | str | bytes | ctypes.Array | None) -> None:
    """A system call. Raises OSError naming it with its texts."""
    encoded = [os.fsencode(value) if isinstance(value, str) else value for value in arguments]
    if function(*encoded) != 0:
        code = ctypes.get_errno()
        what = " ".join([function.__name__, *(value for value in arguments if isinstance(value, str))])
        raise OSError(code, f"{what}: {os.strerror(code)}")


def prctl(option: int, value: int, more: int = 0) -> None:
    call(libc.prctl, option, value, more, 0, 0)


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def own_id() -> int | None:
    """An id that no other process has, so that the limit on processes counts the program's alone.

    Drawn, not counted: two containers may share the kernel's ids, and nothing else. None for who cannot change his id:
    an ordinary user, and root where no FREE ids are mapped, as in a container of `unshare --map-root-user`.
    """
    for ids in () if os.getuid() else FREE:
        if all(is_mapped(path, ids) for path in ("/proc/self/uid_map", "/proc/self/gid_map")):
            return ids[int.from_bytes(os.urandom(8)) % len(ids)]
    return None


def is_mapped(path: str, ids: range) -> bool:
    with open(path) as file:
        maps = [[int(number) for number in line.split()] for line in file]
    return any(first <= ids[0] and ids[-1] < first + count for first, _, count in maps)


def check_process_limit() -> None:
    """Raises OSError for root of a container whose only id is the machine's root, since no limit on processes binds the
    machine's root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, hard))
    with contextlib.suppress(BlockingIOError):
        os.fork() or os._exit(0)
        raise OSError(
            errno.EPERM,
            "no limit on processes binds the machine's root: start the container as another user, or map more ids",
        )
    resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard))


def enter_namespaces(number: int | None) -> None:
    """Own mounts, processes, network and System V memory;
    who has no other id gets these inside an own user namespace."""
    user, group = os.getuid(), os.getgid()
    call(libc.unshare, NEWNS | NEWPID | NEWNET | NEWIPC | (NEWUSER if number is None else 0))
    if number is None:
        write("/proc/self/setgroups", "deny")
        write("/proc/self/uid_map", f"{NOBODY} {user} 1")
        write("/proc/self/gid_map", f"{NOBODY} {group} 1")
        LIMITS[resource.RLIMIT_NPROC] += 2  # the supervisors, which this namespace counts too


def new_root() -> None:
    """Make the root a small read-only tree: the system's libraries, the interpreter's, four devices, an empty /tmp.

    There is no /proc: nothing needs it, it tells much, and many containers do not let one be mounted. The tree is a
    folder that is entered by chroot(2): there the kernel makes no user namespace, in which the program would have every
    capability.
    """
    prefix = os.path.realpath(sys.base_prefix)  # modules are looked for under its name, which may be a link
    call(libc.mount, None, "/", None, REC | PRIVATE, None)
    call(libc.mount, "tmpfs", "/tmp", "tmpfs", NOSUID | NODEV, "size=1m,mode=0755")  # hides nothing after the pivot
    os.mkdir("/tmp/old")
    call(libc.pivot_root, "/tmp", "/tmp/old")
    os.chdir("/")
    os.makedirs("/new/tmp")
    call(libc.mount, "tmpfs", "/new/tmp", "tmpfs", NOSUID | NODEV, f"{DISK},mode=1777")
    for path in (*SYSTEM, *DEVICES):
        show(path, path)
    for name in ("bin", "lib", "lib64") if not f"{prefix}/".startswith("/usr/") else ():
        show(f"{prefix}/{name}", f"{sys.base_prefix}/{name}")
    call(libc.umount2, "/old", DETACH)
    os.rmdir("/old")
    call(libc.mount, None, "/", None, REMOUNT | BIND | RDONLY | NOSUID | NODEV, None)
    call(libc.chroot, "/new")
    os.chdir("/tmp")


def show(source: str, path: str) -> None:
    """Bind the old root's `source` to the new one's `path`,
    read-only with all that is mounted below it, if it exists."""
    old, path = f"/old{source}", f"/new{path}"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.islink(old):  # /bin -> usr/bin
        os.symlink(os.readlink(old), path)
        return
    if not os.path.exists(old):
        return
    if os.path.isdir(old):
        os.mkdir(path)
    else:
        write(path, "")
    call(libc.mount, old, path, None, BIND | REC, None)
    with open("/old/proc/self/mountinfo") as file:
        mounts = [line.split()[4].replace("\\040", " ") for line in file]
    for mount in [mount for mount in mounts if mount == path or mount.startswith(path + "/")]:
        flags = os.statvfs(mount).f_flag & LOCKED
        call(libc.mount, None, mount, None, REMOUNT | BIND | RDONLY | NOSUID | flags, None)


def restrict(cpu_seconds: int, number: int | None, rules: bytes) -> None:
    """What the program's process loses for good:
    its session, keys, resources, root, capabilities, most system calls."""
    os.setsid()
    if rules:  # a new, empty keyring; a kernel without keys refuses
        libc.syscall(KEYCTL[os.uname().machine], JOIN_SESSION_KEYRING, None)
    for kind, value in {**LIMITS, resource.RLIMIT_CPU: cpu_seconds}.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value + 1 if kind == resource.RLIMIT_CPU and hard != value else value))
    if number is not None:  # the limit on processes does not bind root
        os.setgroups([])
        os.setresgid(number, number, number)
        os.setresuid(number, number, number)
    header, nothing = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    call(libc.capset, header, nothing)
    prctl(NO_NEW_PRIVS, 1)
    prctl(PDEATHSIG, signal.SIGKILL)
    enter_domain()
    if rules:
        code = ctypes.create_string_buffer(rules)
        program = ctypes.create_string_buffer(struct.pack("HP", len(rules) // 8, ctypes.addressof(code)))
        with contextlib.suppress(OSError):  # a kernel without seccomp
            prctl(SECCOMP, FILTER, ctypes.addressof(program))


def enter_domain() -> None:
    """landlock(7): processes in the domain neither signal nor trace others; before Linux 6.12 they can signal."""
    if libc.syscall(CREATE_RULESET, None, 0, VERSION) < 6:
        return
    fields = struct.pack("QQQ", 0, 0, SCOPES)
    ruleset = libc.syscall(CREATE_RULESET, fields, len(fields), 0)
    call(libc.syscall, RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


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
