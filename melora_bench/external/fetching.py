"""Whether what is not on this machine may be fetched, from a hub or from the package index."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_allowed = ContextVar("allowed", default=True)


def may_fetch() -> bool:
    return _allowed.get()


@contextlib.contextmanager
def nothing_fetched() -> Iterator[None]:
    """Inside, what is not on the disk is refused: to look whether work was done needs no network,
    and waits for none."""
    token = _allowed.set(False)
    try:
        yield
    finally:
        _allowed.reset(token)
