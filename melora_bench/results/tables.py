"""From records to the papers' tables: ours beside the published numbers, with seeds, spread and a verdict."""

import functools
import glob
import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from omegaconf import OmegaConf

from melora_bench.external import shapes
from melora_bench.external.notices import warn_once
from melora_bench.external.shapes import leaves
from melora_bench.files import CONFIGS, ROOT, options, write_text
from melora_bench.grids.grid import as_list, reference
from melora_bench.records import records
from melora_bench.records.identity import config_hash
from melora_bench.records.records import RunRecord
from melora_bench.results import published
from melora_bench.results.estimates import ESTIMATES, Runs, Score, all_records, average, scores, sure
from melora_bench.results.latex import latex
from melora_bench.results.layout import any_record
from melora_bench.results.markdown import markdown

BACKBONE = "roberta_base"  # the papers', where a table names no other
Cells = dict[tuple[str, int, str], Runs]  # (backbone, row number, task)


def load_grid(name: str) -> dict:
    """A table's YAML. Raises ValueError naming the tables there are."""
    if name not in options("table"):
        raise ValueError(f"table {name!r} is unknown: there are {', '.join(sorted(options('table')))}")
    return OmegaConf.to_container(OmegaConf.load(CONFIGS / "table" / f"{name}.yaml"))


def with_numbers(names: list[str], results_dir: str | None = None) -> list[str]:
    """Those tables of the committed results that have published numbers or a record."""
    found = []
    for name in names:
        grid = load_grid(name)
        runs = Path(results_dir or ROOT / "results") / "runs" / grid["experiment"]
        if "results_dir" not in grid and (printed(grid["table"]) or any(runs.glob("*/*.json"))):
            found.append(name)
    return found


def experiments(name: str, results_dir: str | Path) -> list[str]:
    """The experiments that hold records of a table's points: its own first, then those of trials (`grid.experiment`)."""
    own, runs = load_grid(name)["experiment"], Path(results_dir) / "runs"
    return [path.name for path in (runs / own, *sorted(runs.glob(f"{glob.escape(own)}-*"))) if path.is_dir()]


@dataclass(frozen=True, kw_only=True)
class Assembled:
    """A table with everything that its records say."""

    table: dict
    results: Path
    cells: Cells
    rows: list[dict]  # what `rows_of` gives
    obstacles: dict[str, str]  # by run_id, what keeps a record from a verdict; empty: nothing


def assemble(name: str, results_dir: str | None = None, experiment: str | None = None) -> Assembled:
    """Of the table's own experiment, or of another that its sweep was given. Raises ValueError for an experiment that names no
    folder of records, for a bad record, or for two configs that claim one cell."""
    if experiment is not None and not shapes.name(experiment):
        raise ValueError(
            f"experiment {experiment!r} must be {shapes.name.__doc__}: it names a folder and the table's files"
        )
    grid = load_grid(name)
    table, results = grid["table"], Path(results_dir or ROOT / grid.get("results_dir", "results"))
    if experiment not in (None, grid["experiment"]):
        table["title"] += f", experiment {experiment}"
    cells = collect(table, records.load_all(results, experiment or grid["experiment"]), results)
    obstacles = {r.run_id: obstacle(r, table, table["rows"][number]["points"])
                 for (_, number, _), runs in cells.items() for r in all_records(runs)}  # fmt: skip
    rows = rows_of(table, cells, obstacles)
    return Assembled(table=table, results=results, cells=cells, rows=rows, obstacles=obstacles)


def regenerate(name: str, results_dir: str | None = None, experiment: str | None = None) -> tuple[Path, Path, Path]:
    """Write <results_dir>/tables/<name>.csv, .md and .tex from the records of its experiment, or another, which then is the
    name; returns the paths.

    Raises ValueError as `assemble` does, and for a table without any number; the old files then stay.
    """
    it = assemble(name, results_dir, experiment)
    if not it.cells and not printed(it.table):
        raise ValueError(f"{it.results} has no records of {name}: run scripts/train.py table={name} first")
    frame = pd.DataFrame(it.rows).drop(columns=["number", "which", "scores", "sure"])
    obstacles = set(filter(None, it.obstacles.values()))
    texts = {
        "csv": frame.map(_cell).to_csv(index=False, lineterminator="\n"),
        "md": markdown(it.table, it.rows, it.cells, obstacles),
        "tex": latex(it.table, it.rows, it.cells, obstacles),
    }
    csv, md, tex = (
        write_text(it.results / "tables" / f"{experiment or name}.{kind}", text) for kind, text in texts.items()
    )
    return csv, md, tex


def _cell(value: object) -> object:
    """A cell of the CSV: a spreadsheet runs a text that begins like a formula, unless it is a number or an interval."""
    formula = isinstance(value, str) and re.match(r"[=+\-@\t\r]", value)
    return f"'{value}" if formula and not re.fullmatch(r"[+-]?[\d.]+( to [+-]?[\d.]+)?", value) else value


def collect(table: dict, found: list[RunRecord], results: Path) -> Cells:
    """The records by cell; those of no row or task of the table are left out. One of a row with a backbone of its own
    stands among the table's.

    Raises ValueError when two configs or weights claim one cell, or two data sets one task. Where the same data came from, a
    hub or a folder, does not matter.
    """
    cells: Cells = {}
    claims: dict[tuple, tuple] = {}
    for record in found:
        task = record.choices["task"]
        if task not in table["tasks"]:
            continue
        rows = [(number, row) for number, row in enumerate(table["rows"])
                if all(str(lookup(record, key)) in listed(row, key) for key in row["points"])]  # fmt: skip
        own = [(number, row) for number, row in rows if "backbone" in row["points"]]
        backbone = table.get("backbone", BACKBONE) if own else record.model["name"]
        for number, row in own or rows:
            value = str(lookup(record, row["over"])) if "over" in row else ""
            run, cell = (config_hash(_asked(record)), record.model["sha256"]), f"one cell ({row['label']}, {task})"
            for claim, key, what in ((run, (backbone, number, task, value), cell),
                                     (_data(record), (backbone, task), f"the data of {task}")):  # fmt: skip
                other, first = claims.setdefault(key, (claim, record))
                if other != claim:
                    raise ValueError(f"{record.path(results)} and {first.path(results)} disagree on {what}: they differ in "
                                     f"{_differing(record, first)}; run one under another experiment=NAME")  # fmt: skip
            by_seed = cells.setdefault((backbone, number, task), {}).setdefault(value, {})
            first = by_seed.setdefault(record.seed, record)
            if first is not record:
                warn_once(f"{record.path(results)} is the same run on the same data as {first.path(results)}, from elsewhere: "
                          "the table shows the latter")  # fmt: skip
    return cells


def rows_of(table: dict, cells: Cells, obstacles: dict[str, str]) -> list[dict]:
    """The lines of the CSV: backbone x row (best and mean, where it selects) x task, then the average over tasks.

    `scores` of a line is {estimate: Score}, empty unless every value that the row lists has a record; an average is
    blank unless every task has a score. An average also has `sure`, {estimate: Sure}, which compares it with the row that
    is its reference, where that is complete. `number` and `which` (see `_kinds`) say of what a line is; the CSV leaves
    these four out. obstacles: by run_id, what keeps a record from a verdict.
    """
    paper, lines = printed(table), []
    for backbone in sorted({backbone for backbone, _, _ in cells}) or [table.get("backbone", BACKBONE)]:
        averages: list[tuple[dict, dict, list]] = []  # (line, row, the tasks of the line)
        for number, row in enumerate(table["rows"]):
            here = {task: cells.get((backbone, number, task), {}) for task in table["tasks"]}
            for which, of, wanted in _kinds(row, here):
                row_of = {"number": number, "which": which, "backbone": backbone, "row": row["label"] + of}
                own = row.get("published", {})
                variant, printed_as = own.get(which), own.get("method", row["points"]["method"])
                done: dict[str, dict[str, Score]] = {}
                reasons: dict[str, str] = {}
                for task in table["tasks"]:
                    runs, found, chosen = here[task], {}, ""
                    if which == "alone":
                        runs = {value: runs[value] for value in wanted if value in runs}
                    if runs and set(runs) == set(wanted):
                        found, chosen = scores({value: runs[value] for value in wanted}, which)
                        each = (obstacles[record.run_id] for record in all_records(runs))
                        reasons[task] = "; ".join(dict.fromkeys(filter(None, each)))
                    done |= {task: found} if found else {}
                    about = {**row_of, "task": task, "chosen": chosen}
                    cell = paper.get((printed_as, variant, task))
                    lines.append(_line(about, runs, found, cell, reasons.get(task, "")))
                if table["average"]:
                    tasks = list(done.values()) if len(done) == len(table["tasks"]) else []
                    found = average(tasks) if tasks else {}
                    about = {**row_of, "task": table["average"], "chosen": ""}
                    cell = paper.get((printed_as, variant, table["average"]))
                    why = "; ".join(f"{task} {reason}" for task, reason in reasons.items() if reason)
                    lines.append(_line(about, {}, found, cell, why))
                    averages += [(lines[-1], row, tasks)] if found else []
        whole = {row["label"]: tasks for _, row, tasks in reversed(averages)}
        for line, row, tasks in averages:
            line["sure"] = sure(tasks, whole.get(reference(table, row), []))
            for name, certain in line["sure"].items():
                line |= {f"{name}_interval": certain.interval, f"{name}_beats_lora": certain.beats_lora}
    return lines


def _kinds(row: dict, here: dict[str, Runs]) -> list[tuple[str, str, list[str]]]:
    """(kind, what the label adds, values of the key that the row selects over) of each line of a row: single; or best and
    mean, and while a task lacks some value, each value alone."""
    values, over = listed(row, row.get("over")), row.get("over", "").removeprefix("method.")
    if not over:
        return [("single", "", values)]
    there = {value for runs in here.values() for value in runs}
    whole = all(set(runs) in (set(), set(values)) for runs in here.values())
    alone = [] if whole else [("alone", f", {over}={value} alone", [value]) for value in values if value in there]
    return [("best", f", best {over}", values), ("mean", f", mean over {over}", values), *alone]


def verdict(score: Score, cell: published.Cell, obstacle: str) -> str:
    """not comparable | too few seeds (< 3) | agrees (|difference| <= 2 sd / sqrt(n) + half a printed unit) | differs."""
    if obstacle:
        return f"not comparable: {obstacle}"
    count = len(score.values)
    if count < 3:
        return "too few seeds"
    return "agrees" if abs(score.mean - cell.value) <= 2 * score.sd / count**0.5 + cell.half_unit else "differs"


def obstacle(record: RunRecord, table: dict, own: dict) -> str:
    """Why a record of the row with the points `own` cannot be held against the paper: another backbone, or settings other
    than the paper's; else empty."""
    if not table["paper"]:
        return ""
    task, paper_backbone = table.get("trained_on", record.choices["task"]), table.get("backbone", BACKBONE)
    expected = dict(_settings(table["paper"], task, record.choices["method"]) if record.choices["recipe"] else {})
    expected |= _of_task("task", record.choices["task"])
    if "trained_on" in record.config:  # a score
        expected |= {"task.limit": None, "task.which": "best"}
    if record.config.get("trained_on"):
        expected |= _of_task("trained_on", task)
    other = [f"{key} {value} instead of {wanted}" for key, wanted in expected.items()
             if key not in own and (value := lookup(record, key)) != wanted]  # fmt: skip
    others = sorted({record.choices["backbone"], record.model["name"]} - {paper_backbone})
    backbone = [f"backbone {name}" for name in others]
    for split, part in record.data.items():
        if part is None or part.get("file", split) != split:
            other.append(f"{split} {'missing' if part is None else 'from ' + part['file']}")
        elif part.get("label", "").startswith("local "):
            other.append(part["label"])
    return ", ".join(backbone + other)


def listed(row: dict, key: str | None) -> list[str]:
    """The values of `key` that a row lists, as text; one empty text for a row without such a key."""
    return [str(value) for value in as_list(row["points"].get(key, ""))]


def printed(table: dict) -> dict[tuple[str, str, str], published.Cell]:
    """The table's published cells; none for a table or figure whose numbers are ours or could not be recovered."""
    return published.index(table["paper"], table["number"]) if table["paper"] else {}


@functools.cache
def _settings(paper: str, task: str, method: str) -> dict:
    """The paper's settings by config key: its recipe, the method's YAML, and what it leaves alone."""
    folder = CONFIGS
    recipe, own = (OmegaConf.load(folder / group) for group in (f"recipe/{paper}/{task}.yaml", f"method/{method}.yaml"))
    for key in ("_target_", "version", "target_modules"):
        del own[key]
    recipe = OmegaConf.to_container(OmegaConf.merge(recipe, {"method": own}), resolve=True)
    recipe.pop("per_method", None)  # the method's values have taken it up
    recipe.pop("accumulation", None)  # changes nothing but memory
    own = {f"method.{key}": value for key, value in recipe.pop("method").items()}
    untouched = {"init_from": None, "max_train_rows": None, "max_eval_rows": None, "backbone.dropout": None}
    return recipe | own | untouched


@functools.cache
def _of_task(group: str, task: str) -> dict:
    """A task's own settings by config key, without those that say which copy of its data is read."""
    own = OmegaConf.to_container(OmegaConf.load(CONFIGS / "task" / f"{task}.yaml"))
    return {
        f"{group}.{key}": value for key, value in own.items() if key not in ("_target_", "version", "repo", "revision")
    }


def _line(about: dict, runs: Runs, found: dict[str, Score], cell: published.Cell | None, why: str) -> dict:
    record = any_record(runs)
    line = about | {
        "metric": record.metric if record else "",
        "adapter_params": record.params["adapter"] if record else "",
    }
    line["seeds"] = len(found["best"].values) if found else ""
    for name in ESTIMATES:
        line[f"{name}_mean"] = f"{found[name].mean:.2f}" if found else ""
        line[f"{name}_sd"] = f"{found[name].sd:.2f}" if found and found[name].sd is not None else ""
        line |= {f"{name}_interval": "", f"{name}_beats_lora": ""}
    line["published"] = cell.text if cell else ""
    both = found and cell
    other_data = "local " in why  # another set of questions than the paper's
    line["difference"] = f"{found['best'].mean - cell.value:+.2f}" if both and not other_data else ""
    line["verdict"] = verdict(found["best"], cell, why) if both else ""
    line |= {"published_backbone": cell.backbone if cell else "", "published_source": cell.source if cell else ""}
    rates = [r.rows_per_second * (1 + len(r.packed_with)) for r in all_records(runs) if r.rows_per_second]
    line["rows_per_second"] = f"{sum(rates) / len(rates):.0f}" if rates else ""  # of whole packed runs, in training
    return line | {"scores": found, "sure": {}}


def _data(record: RunRecord) -> tuple:
    """The sha256 of each split's files."""
    return tuple(part and tuple(part["sha256"]) for part in record.data.values())


def _asked(record: RunRecord) -> dict:
    """The config without where the data came from, as their sha256 say what they are. Those of a score are the questions': of
    what its model was trained on the config alone speaks."""
    return record.config if "trained_on" in record.config else {**record.config, "data": {}}


def _differing(one: RunRecord, other: RunRecord) -> str:
    """The config keys in which two records differ, with both values; else weights or data."""
    a, b = dict(leaves(_asked(one))), dict(leaves(_asked(other)))
    keys = [f"{key} ({a.get(key)} and {b.get(key)})" for key in sorted(a | b) if a.get(key) != b.get(key)]
    return ", ".join(keys[:5]) + ", .." * (len(keys) > 5) if keys else "weights or data"


def lookup(record: RunRecord, key: str) -> object:
    """The record's value of a config key; `method` itself is the group's option."""
    if key in record.choices:
        return record.choices[key]
    value: object = record.config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
