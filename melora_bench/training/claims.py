"""Who may do a piece of work: a lock file that a process holds, and that a dead process holds no more."""

import contextlib
import errno
import fcntl
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from melora_bench.files import owner


@contextlib.contextmanager
def claimed(lock: Path, wait: float = 1.0) -> Iterator[bool]:
    """Whether this process may do the work that `lock` stands for: False while another does. A dead process holds
    nothing.

    The short wait outlasts a process that only looks whether the lock is free (`held`). Raises ValueError
    when the lock cannot be opened, or the file system has no locks.
    """
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        claim = FileLock(lock, fallback_to_soft=False).acquire(timeout=wait)
    except Timeout:
        yield False
        return
    except OSError as error:
        raise ValueError(_no_lock(lock, error)) from error
    with claim:
        yield True


def held(lock: Path) -> bool:
    """Whether some process holds the claim `lock`; asks without being able to hold it, and without write access."""
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such lock, or none that this user may see
        return False
    return False


def _no_lock(lock: Path, error: OSError) -> str:
    if isinstance(error, PermissionError) and lock.exists():
        return (
            f"{lock} belongs to {owner(lock)}, and this user may not write it: give another output_dir, or let its "
            "owner make it writable for both (chmod, and umask 002 from now on)"
        )
    if error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
        return f"{lock} cannot be locked ({error.strerror}): give an output_dir on a file system with flock"
    return f"{lock} cannot be locked ({error.strerror or error}): give an output_dir that can be written"
