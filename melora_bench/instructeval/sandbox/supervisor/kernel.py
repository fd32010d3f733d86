"""The kernel's calls and numbers that the supervisor needs, beyond Python's own."""

import ctypes
import os
from collections.abc import Callable

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
