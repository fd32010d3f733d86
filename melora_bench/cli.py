"""melora-bench COMMAND [arguments]: train, score and tabulate the LoRA family.

Settings are key=value, as in Hydra; `melora-bench COMMAND --help` explains a command, docs/cli.md all of them.
"""

import importlib
import os
import sys
from types import ModuleType

from melora_bench import __version__
from melora_bench.commands.arguments import nearest
from melora_bench.commands.running import DONE, HELP, USAGE
from melora_bench.files import options
from melora_bench.training.processes import interruptible

COMMANDS = ("train", "sweep", "status", "plan", "score", "tables", "figures", "report", "export", "docs")
COMPLETION = ("-sc", "--shell-completion")
HYDRA = ("train", "score")  # the commands whose arguments Hydra completes


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code. By default the arguments are those of the process."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    if name in COMPLETION:
        return complete(rest)
    if name in HELP or not name:
        print(usage())
        return DONE if name else USAGE
    if name == "--version":
        print(f"melora_bench {__version__}")
        return DONE
    if name not in COMMANDS:
        question = nearest(name, (*COMMANDS, "--help", "--version"))
        has = "" if question else f": there are {', '.join(COMMANDS)}"
        print(f"error: {name} is no command of melora-bench{question}{has}", file=sys.stderr)
        return USAGE
    command = _module(name)
    with interruptible(getattr(command, "REMEDY", "")):
        return command.main(rest)


def usage() -> str:
    """The commands with the first line of each one's help."""
    lines = [f"  {name:8} {str(_module(name).__doc__).partition(chr(10))[0]}" for name in COMMANDS]
    return "\n".join([str(__doc__).strip(), "", *lines])


def complete(arguments: list[str]) -> int:
    """What Hydra's shell completion asks for: its functions for the shell,
    and the words that may follow a command line."""
    _, *words = os.environ.get("COMP_LINE", "").split() or [""]
    begun = len(words) > 1 or os.environ.get("COMP_LINE", "").endswith(" ")
    if not any(argument.startswith("query=") for argument in arguments):
        return _module("train").main([COMPLETION[0], *arguments])
    if not (words and begun):
        print(" ".join(COMMANDS))
    elif words[0] in HYDRA:
        os.environ["COMP_LINE"] = os.environ["COMP_LINE"].replace(words[0], "", 1)
        return _module(words[0]).main([COMPLETION[0], *arguments])
    else:
        print(" ".join(sorted(options("table"))))
    return DONE


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"melora_bench.commands.{name}")


if __name__ == "__main__":
    sys.exit(main())
