"""Warnings that are said once a process, however often their cause is met."""

import functools
import logging

log = logging.getLogger(__name__)


@functools.cache
def warn_once(text: str) -> None:
    log.warning("%s", text)
