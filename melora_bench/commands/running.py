"""What every command has: --help, and one line with an exit code for a mistake."""

import functools
import inspect
import sys
from collections.abc import Callable

from hydra.errors import ConfigCompositionException, HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from melora_bench.commands.arguments import UsageError
from melora_bench.commands.slips import in_one_line
from melora_bench.external.shapes import printable
from melora_bench.files import reason

DONE, FAILED, USAGE = 0, 1, 2
HELP = {"-h", "--help"}
Main = Callable[[list[str]], int]


def command(main: Main) -> Main:
    """`main` as a command: --help prints the docstring of its module, a mistake ends as `exit_code` says."""

    @functools.wraps(main)
    def wrapped(arguments: list[str]) -> int:
        if HELP & set(arguments):
            print(inspect.getdoc(inspect.getmodule(main)))
            return DONE
        return exit_code(functools.partial(main, arguments))

    return wrapped


def exit_code(body: Callable[[], int | None]) -> int:
    """The exit code of what `body` does: USAGE for a mistake on the command line, FAILED for another; each has its one
    line."""
    try:
        return body() or DONE
    except (UsageError, ConfigCompositionException, OverrideParseException) as error:
        return _say(in_one_line(error), USAGE)
    except OSError as error:
        return _say(reason(error), FAILED)
    except (ValueError, HydraException, OmegaConfBaseException) as error:
        return _say(str(error), FAILED)
    except SystemExit as end:
        if isinstance(end.code, int | None):
            return end.code or DONE
        print(end.code, file=sys.stderr)
        return FAILED


def _say(line: str, code: int) -> int:
    print(f"error: {printable(line)}", file=sys.stderr)
    return code
