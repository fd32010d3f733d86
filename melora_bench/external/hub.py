"""Files of a hub's repositories, through the hub's own cache (HF_HOME),
and what a person can do when they cannot be had."""

import textwrap
import time
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from melora_bench.external.fetching import may_fetch

# What the library lets through: of httpx, the file system, hf_xet (chunked storage), and an answer that is no hub's.
FAILURES = (HTTPError, OSError, RuntimeError, ValueError, KeyError, AssertionError)
WAITS = (1, 4)  # seconds before another try after a failure that may pass
# A model's own files lie at the top: folders hold conversions to other formats and first checkpoints.
LEFT_OUT = {"model": ["*/*"], "dataset": None}


def hub_snapshot(repo: str, revision: str | None, *, kind: str, patterns: list[str], offline: str) -> tuple[Path, str]:
    """Download (or find in the hub's own cache) the files of a hub repository that match `patterns`.

    Returns the folder and the commit that `revision` resolved to. When the hub does not answer, or is not to be asked
    (`fetching`), the cached commit of `revision` stands in for it. Raises ValueError with the reason and the remedy,
    which is `offline` where the network is the reason.
    """
    ask = may_fetch()
    hooks = huggingface_hub.get_session().event_hooks["request"]
    if _bounded not in hooks:
        hooks.append(_bounded)
    waits = iter(WAITS)
    while True:
        try:
            folder = huggingface_hub.snapshot_download(
                repo,
                revision=revision,
                repo_type=kind,
                allow_patterns=patterns,
                ignore_patterns=LEFT_OUT[kind],
                local_files_only=not ask,
            )
            return Path(folder), Path(folder).name
        except FAILURES as error:
            if not ask:
                raise ValueError(
                    f"{repo} at {revision or 'main'!r} is not in the cache {constants.HF_HUB_CACHE}"
                ) from error
            cause = (isinstance(error, LocalEntryNotFoundError) and error.__cause__) or error
            wait = next(waits, None)
            if wait is None or not _may_pass(cause):
                page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repo}"
                reason, remedy = _explained(cause, page, offline)
                raise ValueError(
                    f"cannot fetch {repo} at {revision or 'main'!r} from the hub ({reason}); {remedy}"
                ) from error
        time.sleep(wait)


def _bounded(request) -> None:
    """Give a request without a time limit the hub's own one: its library asks for a repository's commit without any."""
    limits = request.extensions["timeout"]
    limits.update({key: constants.HF_HUB_DOWNLOAD_TIMEOUT for key, limit in limits.items() if limit is None})


def _may_pass(error: BaseException) -> bool:
    """Whether to try again: the library itself waits after a time-out and as long as a rate limit (429) asks."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500
    cut = type(error) is OSError and error.errno is None  # fewer bytes came than were announced
    return cut or (isinstance(error, HTTPError) and "Timeout" not in type(error).__name__)


def _explained(error: BaseException, page: str, offline: str) -> tuple[str, str]:
    """The reason in words, and what to do."""
    endpoint = constants.ENDPOINT
    response = error.response if isinstance(error, HfHubHTTPError) else None
    status = None if response is None else response.status_code
    said = textwrap.shorten((str(error).strip() or type(error).__name__).splitlines()[0], 160, placeholder=" ...")
    if isinstance(error, GatedRepoError):
        return f"it is gated ({status})", f"accept its licence at {page}, then `hf auth login` or set HF_TOKEN"
    if isinstance(error, RevisionNotFoundError):
        return "it has no such revision", f"name a branch, a tag or a whole commit of {page}/commits/main"
    if isinstance(error, RepositoryNotFoundError) or status in (401, 403):
        reason = f"there is no such repository, or this login may not read it ({status})"
        return reason, f"check the name at {page}, or `hf auth login` or set HF_TOKEN"
    if response is not None and status == 404:
        return f"{response.url.path} is not there (404)", "name another revision, or try again later"
    if response is not None and status == 429:
        after = response.headers.get("Retry-After")
        reason = f"too many requests (429){f', again after {after} s' if after else ''}"
        return reason, "wait, then start again: files that came whole are kept"
    if status is not None:
        return f"{endpoint} answers {status}", f"try again later, or {offline}"
    if isinstance(error, OfflineModeIsEnabled):
        return f"HF_HUB_OFFLINE is set, and the cache {constants.HF_HUB_CACHE} lacks it", offline
    if isinstance(error, HTTPError):
        return f"no answer from {endpoint}: {said}", f"try again: files that came whole are kept; {offline}"
    if isinstance(error, HFValidationError):
        return said, "a repository is named OWNER/NAME"
    if isinstance(error, OSError) and error.errno:
        where = error.filename or constants.HF_HUB_CACHE
        return f"{error.strerror}: {where}", "name a folder with room for the cache with HF_HOME=DIR"
    if isinstance(error, OSError):
        return said, offline
    if isinstance(error, RuntimeError):
        return f"its chunked storage fails: {said}", f"HF_HUB_DISABLE_XET=1 downloads without it; {offline}"
    return f"what answers at {endpoint} is no hub: {said}", f"check HF_ENDPOINT and the proxy; {offline}"
