"""Handing a command line over to Hydra, which composes configs/ and runs one job or several."""

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator

from hydra._internal.utils import get_args_parser
from hydra.errors import CompactHydraException, ConfigCompositionException, OverrideParseException

from melora_bench.commands.arguments import UsageError, nearest
from melora_bench.commands.running import FAILED, HELP, USAGE, exit_code
from melora_bench.files import home

RAISE = "HYDRA_FULL_ERROR"  # set to 1, Hydra raises what it would print over many lines


def run_hydra(task: Callable[[], None], arguments: list[str], text: str, mistake: str = "") -> int:
    """Run `task`, a function under hydra.main, with these arguments; returns the exit code. A mistake ends in one line,
    unless HYDRA_FULL_ERROR=1 asks for the trace. `--help` prints `text` before what Hydra says. mistake: what the
    command itself has against the arguments."""
    if mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return USAGE
    if HELP & set(arguments):
        print(text.strip(), end="\n\n")
    if os.environ.get(RAISE) == "1":
        _check_options(arguments)
        with _command_line(arguments):
            task()
        return 0
    return exit_code(functools.partial(_run, task, arguments))


def _run(task: Callable[[], None], arguments: list[str]) -> int:
    _check_options(arguments)
    try:
        with _command_line(arguments):
            task()
    except (ConfigCompositionException, OverrideParseException):
        raise
    except CompactHydraException as error:  # a failed run or sweep, whose text is the line
        print(error, file=sys.stderr)
        return FAILED
    return 0


def _check_options(arguments: list[str]) -> None:
    """Raises UsageError for an option that Hydra does not have."""
    known = {option for action in get_args_parser()._actions for option in action.option_strings}
    for word in arguments:
        name = word.partition("=")[0]
        if name.startswith("-") and name not in known:
            raise UsageError(
                f"{name} is no option of this command{nearest(name, known) or ', whose options --help lists'}"
            )


@contextlib.contextmanager
def _command_line(arguments: list[str]) -> Iterator[None]:
    """Hydra reads the process's own arguments and environment."""
    argv, setting = sys.argv, os.environ.get(RAISE)
    sys.argv, os.environ[RAISE] = [argv[0], *map(home, arguments)], "1"
    try:
        yield
    finally:
        sys.argv = argv
        if setting is None:
            del os.environ[RAISE]
        else:
            os.environ[RAISE] = setting
