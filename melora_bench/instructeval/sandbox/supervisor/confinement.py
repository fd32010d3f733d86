"""Takes away from a process what a program must not have: the network, other processes and files, resources, rights,
and system calls."""

import contextlib
import ctypes
import errno
import os
import resource
import signal
import struct
import sys

import kernel
from kernel import call, libc, prctl, write

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
    spaces = kernel.NEWNS | kernel.NEWPID | kernel.NEWNET | kernel.NEWIPC
    call(libc.unshare, spaces | (kernel.NEWUSER if number is None else 0))
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
    call(libc.mount, None, "/", None, kernel.REC | kernel.PRIVATE, None)
    call(
        libc.mount, "tmpfs", "/tmp", "tmpfs", kernel.NOSUID | kernel.NODEV, "size=1m,mode=0755"
    )  # hides nothing after the pivot
    os.mkdir("/tmp/old")
    call(libc.pivot_root, "/tmp", "/tmp/old")
    os.chdir("/")
    os.makedirs("/new/tmp")
    call(libc.mount, "tmpfs", "/new/tmp", "tmpfs", kernel.NOSUID | kernel.NODEV, f"{DISK},mode=1777")
    for path in (*SYSTEM, *DEVICES):
        show(path, path)
    for name in ("bin", "lib", "lib64") if not f"{prefix}/".startswith("/usr/") else ():
        show(f"{prefix}/{name}", f"{sys.base_prefix}/{name}")
    call(libc.umount2, "/old", kernel.DETACH)
    os.rmdir("/old")
    call(libc.mount, None, "/", None, kernel.REMOUNT | kernel.BIND | kernel.RDONLY | kernel.NOSUID | kernel.NODEV, None)
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
    call(libc.mount, old, path, None, kernel.BIND | kernel.REC, None)
    with open("/old/proc/self/mountinfo") as file:
        mounts = [line.split()[4].replace("\\040", " ") for line in file]
    for mount in [mount for mount in mounts if mount == path or mount.startswith(path + "/")]:
        flags = os.statvfs(mount).f_flag & kernel.LOCKED
        call(libc.mount, None, mount, None, kernel.REMOUNT | kernel.BIND | kernel.RDONLY | kernel.NOSUID | flags, None)


def restrict(cpu_seconds: int, number: int | None, rules: bytes) -> None:
    """What the program's process loses for good:
    its session, keys, resources, root, capabilities, most system calls."""
    os.setsid()
    if rules:  # a new, empty keyring; a kernel without keys refuses
        libc.syscall(kernel.KEYCTL[os.uname().machine], kernel.JOIN_SESSION_KEYRING, None)
    for kind, value in {**LIMITS, resource.RLIMIT_CPU: cpu_seconds}.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value + 1 if kind == resource.RLIMIT_CPU and hard != value else value))
    if number is not None:  # the limit on processes does not bind root
        os.setgroups([])
        os.setresgid(number, number, number)
        os.setresuid(number, number, number)
    header, nothing = (ctypes.c_uint32 * 2)(kernel.CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    call(libc.capset, header, nothing)
    prctl(kernel.NO_NEW_PRIVS, 1)
    prctl(kernel.PDEATHSIG, signal.SIGKILL)
    enter_domain()
    if rules:
        code = ctypes.create_string_buffer(rules)
        program = ctypes.create_string_buffer(struct.pack("HP", len(rules) // 8, ctypes.addressof(code)))
        with contextlib.suppress(OSError):  # a kernel without seccomp
            prctl(kernel.SECCOMP, kernel.FILTER, ctypes.addressof(program))


def enter_domain() -> None:
    """landlock(7): processes in the domain neither signal nor trace others; before Linux 6.12 they can signal."""
    if libc.syscall(kernel.CREATE_RULESET, None, 0, kernel.VERSION) < 6:
        return
    fields = struct.pack("QQQ", 0, 0, kernel.SCOPES)
    ruleset = libc.syscall(kernel.CREATE_RULESET, fields, len(fields), 0)
    call(libc.syscall, kernel.RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
