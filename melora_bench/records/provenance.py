"""What made a record: the commit, the code, versions, device and time."""

import datetime
import functools
import logging
import platform
import subprocess
import textwrap
from typing import Any

from melora_bench.files import IN_CHECKOUT, PACKAGE, ROOT, sha256_file, sha256_json

log = logging.getLogger(__name__)
GIT_SECONDS = 60  # what a slow file system may take; a git that hangs holds up no run


@functools.cache
def git_state() -> dict[str, Any]:
    """The commit, and whether code or configs differ from it; both null, with one warning, when git does not say."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        done = subprocess.run(command, capture_output=True, check=True, timeout=GIT_SECONDS, stdin=subprocess.DEVNULL)
        return done.stdout.decode(errors="replace").strip()

    watched = ("melora_bench", "configs", "scripts", "pyproject.toml", "requirements.lock")
    try:
        if not IN_CHECKOUT:  # a git that answers there speaks of another repository
            raise FileNotFoundError(f"{PACKAGE} is an installed package, not a checkout")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--", *watched))}
    except subprocess.CalledProcessError as error:
        reason = " ".join(error.stderr.decode(errors="replace").split())
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    log.warning("records will not say which commit made them: %s", textwrap.shorten(reason, 300))
    return {"commit": None, "dirty": None}


@functools.cache
def code_sha256() -> str:
    """sha256 of the package's source files, with or without git."""
    return sha256_json({str(path.relative_to(PACKAGE)): sha256_file(path) for path in sorted(PACKAGE.rglob("*.py"))})


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def device_name(cuda: bool) -> str:
    import torch

    return torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def environment(accelerator: Any, config: dict[str, Any]) -> dict[str, Any]:
    """Versions, hardware and settings that numbers and timings depend on."""
    import accelerate
    import torch
    import transformers

    cuda = accelerator.device.type == "cuda"
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a class of its own, which no checkpoint takes
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "device": device_name(cuda),
        "processes": accelerator.num_processes,
        **{key: config[key] for key in ("precision", "shard", "compile") if key in config},
    }
