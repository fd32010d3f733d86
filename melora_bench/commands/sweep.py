"""Train every missing point of tables, one table after another, and write what each table has then.

    melora-bench sweep mplora_table2 task=mrpc seeds=[0,1]
    melora-bench sweep melora_table2 mplora_table2
    melora-bench sweep melora_table3 -- backbone=llama2_7b precision=bf16 allow_code_execution=true

A point that fails stops no other, and the table is written all the same. A table whose models are scored on benchmarks
is scored as well: settings after -- are those of `melora-bench score`; without --, the models are scored as they are
trained.
Exit codes: 0 all is done, 1 some point failed, 2 no such table or setting, 3 no table has a point of that selection,
130 Ctrl-C. The same command goes on with what is missing.
"""

import shlex
from collections.abc import Iterable
from typing import cast

from omegaconf import DictConfig, OmegaConf

from melora_bench.commands import score, tables, train
from melora_bench.commands.arguments import UsageError, tables_and_overrides
from melora_bench.commands.running import DONE, FAILED, USAGE, command
from melora_bench.files import CONFIGS
from melora_bench.grids import NO_POINT
from melora_bench.grids.tables import Table, load_table
from melora_bench.grids.trials import experiment
from melora_bench.training.processes import is_main

REMEDY = train.REMEDY
SCORED_AS_TRAINED = ("results_dir", "output_dir", "backbone", "precision")


@command
def main(arguments: list[str]) -> int:
    end = arguments.index("--") if "--" in arguments else len(arguments)
    names, overrides = tables_and_overrides(arguments[:end])
    scoring = arguments[end + 1 :] if "--" in arguments else None
    if not names:
        raise UsageError("name a table: melora-bench sweep mplora_table2")
    codes = []
    for name in names:
        codes.append(sweep(name, overrides, scoring))
        if codes[-1] == USAGE:
            break
    return together(codes)


def together(codes: Iterable[int]) -> int:
    """The exit code of several: USAGE or FAILED where one is, NO_POINT where all are."""
    seen = set(codes)
    for code in (USAGE, FAILED):
        if code in seen:
            return code
    return NO_POINT if seen == {NO_POINT} else DONE


def sweep(name: str, overrides: list[str], scoring: list[str] | None) -> int:
    """Train a table's grid, score its models if it is a table of scores, write it; returns the exit code."""
    table = load_table(name)
    codes = [train.main(["-m", f"table={name}", *overrides])]
    if codes[0] in (USAGE, NO_POINT):
        return codes[0]
    settings = overrides
    if table.trained_on:
        scoring = as_trained(name, table, overrides) if scoring is None else scoring
        models = experiment(table, overrides)[0]
        codes += score_models(table, models, scoring)
        settings = [f"experiment={models}", *scoring]
    if is_main():
        codes.append(tables.main([name, *settings]))
    return together(codes)


def score_models(table: Table, name: str, scoring: list[str]) -> list[int]:
    """Score the backbone as it is, where the table has a row of it, then the runs of the experiment `name`."""
    benchmarks = f"benchmark={','.join(table.tasks)}"
    untrained = any(row.untrained for row in table.rows)
    commands = [[], [f"run={name}"]] if untrained else [[f"run={name}"]]
    codes = []
    for run in commands:
        arguments = ["-m", benchmarks, *run, f"experiment={name}", *scoring]
        print(f"melora-bench score {shlex.join(arguments)}", flush=True)
        codes.append(score.main(arguments))
    return codes


def as_trained(name: str, table: Table, overrides: list[str]) -> list[str]:
    """The settings with which the models of a table are scored as they were trained: its backbone, precision and
    folders."""
    chosen = [item for item in overrides if item.partition("=")[0].partition(".")[0] in SCORED_AS_TRAINED]
    if any(item.startswith("backbone=") for item in chosen):
        return chosen
    grid = cast(DictConfig, OmegaConf.load(CONFIGS / "table" / f"{name}.yaml"))
    fields = {f"backbone.{key}": value for key, value in grid.get("backbone", {}).items()}
    fields |= {key: grid[key] for key in ("precision", "results_dir", "output_dir") if key in grid}
    given = {item.partition("=")[0] for item in chosen}
    table_settings = [f"{key}={value}" for key, value in fields.items() if key not in given]
    return [f"backbone={table.backbone}", *table_settings, *chosen]
