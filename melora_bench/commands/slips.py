"""What Hydra says of an override that it does not take, in one line with the nearest name."""

import re

from hydra.errors import MissingConfigException
from omegaconf import OmegaConf

from melora_bench.commands.arguments import nearest
from melora_bench.files import CONFIGS, options

COMMANDS = ("train", "instructeval")  # the configs that have a command


def in_one_line(error: Exception) -> str:
    """A misspelt option of a group and a misspelt key with the nearest that there is; another error as it is."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _option(error.missing_cfg_file, list(error.options or ()))
    key = re.match(r"Could not override '([^']+)'", str(error))
    return _key(key[1]) if key else " ".join(f"{error} {error.__cause__ or ''}".split())


def _option(path: str, listed: list[str]) -> str:
    """path: of the YAML that is not there, such as task/MRPC."""
    group, _, name = path.partition("/")
    there = sorted(options(group))
    if not there or group == "hydra":
        group, _, name = path.rpartition("/")
        there = sorted(listed)
    has = f" {group} has {', '.join(there)}" if there else ""
    question = nearest(name, there)
    return f"Could not find '{path}'{question}{'' if question or not has else ':'}{has}"


def _key(key: str) -> str:
    question = nearest(key, _keys(key))
    return f"Could not override '{key}'{question or ': there is no such key'} (+{key}=VALUE adds one)"


def _keys(key: str) -> set[str]:
    """The keys that `key` may have been meant to be: of the commands' YAMLs, or of all options of its group."""
    group, dot, _ = key.partition(".")
    if not dot:
        return {str(name) for command in COMMANDS for name in OmegaConf.load(CONFIGS / f"{command}.yaml")}
    files = [CONFIGS / group / f"{option}.yaml" for option in options(group)]
    return {f"{group}.{name!s}" for file in files for name in OmegaConf.load(file)}
