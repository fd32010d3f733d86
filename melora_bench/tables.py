"""From records to the papers' tables: ours beside the published numbers, with seeds, spread and a verdict.

Three estimates stand side by side. best: the best epoch (and n) on the set that is reported, as the papers do it. last:
the last epoch. split: epoch and n chosen on one half of the set and scored on the other, both ways, averaged; the only
one of the three without selection bias at the price of choosing on half the data.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import OmegaConf

from melora_bench import published, records
from melora_bench.files import write_text
from melora_bench.grid import as_list
from melora_bench.records import ROOT, RunRecord

ESTIMATES = {
    "best": "Best epoch on the set that is reported (the papers' selection)",
    "last": "Last epoch",
    "split": "Epoch and n chosen on one half of the set, scored on the other, both ways",
}
WHICH = {"single": "", "best": ", best {over}", "mean": ", mean over {over}"}
Runs = dict[str, dict[int, RunRecord]]  # value of the row's `over` key -> seed -> record


@dataclass(frozen=True)
class Score:
    """One estimate of one cell, in percent: a value per seed."""

    values: dict[int, float]

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.values.values())))

    @property
    def sd(self) -> float | None:
        return float(np.std(list(self.values.values()), ddof=1)) if len(self.values) > 1 else None

    def text(self, usual_seeds: int) -> str:
        spread = "" if self.sd is None else f" ± {self.sd:.2f}"
        return f"{self.mean:.2f}{spread}" + ("" if len(self.values) == usual_seeds else f" ({len(self.values)})")


def load_grid(name: str) -> dict:
    """A table's YAML. Raises ValueError naming the tables there are."""
    path = ROOT / "configs" / "table" / f"{name}.yaml"
    if not path.exists():
        there = ", ".join(sorted(path.stem for path in path.parent.glob("*.yaml")))
        raise ValueError(f"table {name!r} is unknown: there are {there}")
    return OmegaConf.to_container(OmegaConf.load(path))


def regenerate(name: str, results_dir: str | None = None) -> tuple[Path, Path]:
    """Write <results_dir>/tables/<name>.csv and .md from the records of that experiment; returns both paths.

    Raises ValueError for a bad record, or for two configs that claim one cell.
    """
    grid = load_grid(name)
    results = Path(results_dir or ROOT / grid.get("results_dir", "results"))
    cells = collect(grid["table"], records.load_all(results, grid["experiment"]), results)
    if not cells and not grid["table"]["paper"]:
        raise ValueError(f"{results}/runs/{grid['experiment']} has no records: run scripts/train.py table={name} first")
    rows = list(_rows(grid["table"], cells))
    folder = results / "tables"
    frame = pd.DataFrame(rows, columns=list(rows[0]))
    csv = write_text(folder / f"{name}.csv", frame.to_csv(index=False, lineterminator="\n"))
    return csv, write_text(folder / f"{name}.md", _markdown(grid["table"], rows, cells))


def collect(table: dict, found: list[RunRecord], results: Path) -> dict[tuple[str, int, str], Runs]:
    """{(backbone, row number, task): runs}. Raises ValueError when two configs, weights or data sets claim one cell."""
    cells: dict[tuple[str, int, str], Runs] = {}
    claims: dict[tuple, tuple] = {}
    for record in found:
        for number, row in enumerate(table["rows"]):
            over = row.get("over")
            values = {key: str(_lookup(record, key)) for key in row["points"]}
            if any(values[key] not in map(str, as_list(there)) for key, there in row["points"].items()):
                continue
            value, task = values[over] if over else "", record.choices["task"]
            cell = (record.choices["backbone"], number, task)
            data = tuple(part and tuple(part["sha256"]) for part in record.data.values())
            claim = (record.config_hash, record.model["sha256"], data)
            other, path = claims.setdefault((*cell, value), (claim, record.path(results)))
            if other != claim:
                raise ValueError(f"{record.path(results)} and {path} are runs of different configs, weights or data for one "
                                 f"cell ({row['label']}, {task}): move one of them to another experiment")  # fmt: skip
            cells.setdefault(cell, {}).setdefault(value, {})[record.seed] = record
    return cells


def scores(runs: Runs, which: str) -> tuple[dict[str, Score], str]:
    """{estimate: score} of one cell, and the value of `over` that the papers' selection picks (the first of equals).

    which: single or best (select the value), or mean (average over the values). Only seeds that all values have count.
    """
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in runs.values())))
    curves = {value: [_curves(by_seed[seed]) for seed in seeds] for value, by_seed in runs.items()}
    each = {
        value: np.array([_estimates(curve) for curve in per_seed]) for value, per_seed in curves.items()
    }  # (seeds, 3)
    names = list(ESTIMATES)
    if which == "mean":
        chosen, table = "", np.mean(list(each.values()), axis=0)
    else:
        best, last = (max(each, key=lambda value, i=i: each[value][:, i].mean()) for i in (0, 1))
        chosen, table = best, np.stack([each[best][:, 0], each[last][:, 1], _split(curves)], axis=1)
    return {name: Score(dict(zip(seeds, 100 * table[:, i], strict=True))) for i, name in enumerate(names)}, chosen


def verdict(score: Score, cell: published.Cell, obstacle: str) -> str:
    """not comparable | too few seeds (< 3) | agrees (|difference| <= 2 sd / sqrt(n) + half a printed unit) | differs."""
    if obstacle:
        return f"not comparable: {obstacle}"
    count = len(score.values)
    if count < 3:
        return "too few seeds"
    return "agrees" if abs(score.mean - cell.value) <= 2 * score.sd / count**0.5 + cell.half_unit else "differs"


def _rows(table: dict, cells: dict[tuple[str, int, str], Runs]):
    """One dict per line of the CSV: backbone x row x (best, mean) x task, and the average over the tasks."""
    printed = published.index(table["paper"], table["number"]) if table["paper"] else {}
    backbones = sorted({backbone for backbone, _, _ in cells}) or ["roberta_base"]
    for backbone in backbones:
        for number, row in enumerate(table["rows"]):
            for which in ("best", "mean") if row.get("over") else ("single",):
                variant = row.get("published", {}).get(which)
                label = row["label"] + WHICH[which].format(over=row.get("over", "").removeprefix("method."))
                by_task: dict[str, dict[str, Score]] = {}
                obstacles = set()
                for task in [*table["tasks"], *([table["average"]] if table["average"] else [])]:
                    runs, found, chosen = cells.get((backbone, number, task), {}), {}, ""
                    any_record = next((record for by_seed in runs.values() for record in by_seed.values()), None)
                    if any_record and set(runs) == set(map(str, as_list(row["points"].get(row.get("over"), "")))):
                        by_task[task], chosen = scores(runs, which)
                        obstacles.add(_obstacle(any_record))
                        found = by_task[task]
                    elif task == table["average"] and len(by_task) == len(table["tasks"]):
                        found = _average(list(by_task.values()))
                    cell = printed.get((row["points"]["method"], variant, task))
                    line = {"backbone": backbone, "row": label, "task": task}
                    line |= {"metric": any_record.metric if any_record else "", "params": _params(cells, backbone, number),
                             "seeds": len(found["best"].values) if found else "", "chosen": chosen}  # fmt: skip
                    for name in ESTIMATES:
                        line[f"{name}_mean"] = f"{found[name].mean:.2f}" if found else ""
                        line[f"{name}_sd"] = f"{found[name].sd:.2f}" if found and found[name].sd is not None else ""
                    line["published"] = cell.text if cell else ""
                    both = found and cell
                    line["difference"] = f"{found['best'].mean - cell.value:+.2f}" if both else ""
                    line["verdict"] = verdict(found["best"], cell, min(obstacles)) if both else ""
                    line["rows_per_second"] = f"{_speed(runs):.0f}" if runs else ""
                    yield line | {"scores": found}


def _markdown(table: dict, rows: list[dict], cells: dict[tuple[str, int, str], Runs]) -> str:
    tasks = [*table["tasks"], *([table["average"]] if table["average"] else [])]
    lines = [f"# {table['title']}", ""]
    for backbone in dict.fromkeys(row["backbone"] for row in rows):
        mine = [row for row in rows if row["backbone"] == backbone]
        usual = max((row["seeds"] for row in mine if row["seeds"]), default=0)
        seen = {
            task
            for (name, _, _), runs in cells.items()
            for task in _any(runs).config["backbone"]["seen"]
            if name == backbone
        }
        for estimate, title in ESTIMATES.items():
            if not usual and estimate != "best":
                continue
            lines += [f"## {backbone}: {title}", ""]
            speed = ["rows/s"] if table.get("speed") else []
            lines += [
                _line(["method", "adapter params", *(f"{task} †" if task in seen else task for task in tasks), *speed])
            ]
            lines += [_line(["---"] + ["---:"] * (1 + len(tasks) + len(speed)))]
            for label in dict.fromkeys(row["row"] for row in mine):
                by_task = {row["task"]: row for row in mine if row["row"] == label}
                texts = [
                    by_task[task]["scores"][estimate].text(usual) if by_task[task]["scores"] else "" for task in tasks
                ]
                rate = [by_task[task]["rows_per_second"] for task in table["tasks"] if by_task[task]["rows_per_second"]]
                params = by_task[tasks[0]]["params"]
                lines.append(_line([label, params and f"{params:,}", *texts, *([" / ".join(rate)] if speed else [])]))
                if any(by_task[task]["published"] for task in tasks):
                    lines.append(_line(["*published*", "", *(by_task[task]["published"] for task in tasks)]))
            lines.append("")
        verdicts = {row["verdict"] for row in mine if row["verdict"]}
        lines += [f"Verdicts (best epoch): {'; '.join(sorted(verdicts))}.", ""] if verdicts else []
        if seen:
            lines += [f"† the training of {backbone} saw texts of these tasks.", ""]
    return "\n".join(lines + _footer(cells)) + "\n"


def _footer(cells: dict[tuple[str, int, str], Runs]) -> list[str]:
    found = [record for runs in cells.values() for by_seed in runs.values() for record in by_seed.values()]
    if not found:
        return ["No records yet: only published numbers are shown."]
    commits = {f"{(r.git['commit'] or 'none')[:10]}{' (dirty tree)' if r.git['dirty'] else ''}" for r in found}
    data = {f"{task}: {'; '.join(_split_text(name, part) for name, part in r.data.items())}"
            for (_, _, task), runs in cells.items() for r in [_any(runs)]}  # fmt: skip
    changed = {obstacle for r in found if (obstacle := _obstacle(r))}
    return [
        f"Mean ± sd over seeds, in percent; (k) marks a cell with k seeds. {len(found)} records.",
        f"- commits: {', '.join(sorted(commits))}",
        f"- devices: {', '.join(sorted({r.env['device'] + ', ' + r.env['precision'] for r in found}))}",
        f"- backbone weights: {', '.join(sorted({r.model['name'] + ' sha256 ' + str(r.model['sha256'])[:10] for r in found}))}",
        *([f"- settings other than the paper's: {'; '.join(sorted(changed))}"] if changed else []),
        f"- data: {', '.join(sorted(data))}",
    ]


def _split_text(name: str, part: dict | None) -> str:
    return f"{name} {part['rows']} rows" if part else f"{name} missing"


def _obstacle(record: RunRecord) -> str:
    """Why a record cannot be held against the paper: another backbone, or values other than its recipe's."""
    recipe = OmegaConf.to_container(OmegaConf.load(ROOT / "configs" / "recipe" / f"{record.choices['recipe']}.yaml"))
    recipe |= {"max_train_rows": None, "max_eval_rows": None}
    other = [
        f"{key} {record.config[key]} instead of {value}" for key, value in recipe.items() if record.config[key] != value
    ]
    backbone = [] if record.choices["backbone"] == "roberta_base" else [f"backbone {record.choices['backbone']}"]
    return ", ".join(backbone + other)


def _curves(record: RunRecord) -> np.ndarray:
    """(3, epochs): the selection metric on the whole set and on its two halves."""
    metric = record.metric
    return np.array(
        [[entry["metrics"][metric], *(half[metric] for half in entry["halves"])] for entry in record.epochs]
    ).T


def _estimates(curve: np.ndarray) -> tuple[float, float, float]:
    whole, a, b = curve
    return whole.max(), whole[-1], (b[a.argmax()] + a[b.argmax()]) / 2


def _split(curves: dict[str, list[np.ndarray]]) -> np.ndarray:
    """(seeds,): the value of `over` chosen by its mean over seeds on one half, the epoch per seed, scored on the other."""
    ways = []
    for chooser, scorer in ((1, 2), (2, 1)):
        best = max(curves, key=lambda value, i=chooser: np.mean([curve[i].max() for curve in curves[value]]))
        ways.append([curve[scorer][curve[chooser].argmax()] for curve in curves[best]])
    return np.mean(ways, axis=0)


def _average(tasks: list[dict[str, Score]]) -> dict[str, Score]:
    """The mean over tasks, per seed that every task has; empty without such a seed."""
    seeds = set.intersection(*(set(found["best"].values) for found in tasks))
    if not seeds:
        return {}
    return {name: Score({seed: float(np.mean([found[name].values[seed] for found in tasks])) for seed in sorted(seeds)})
            for name in ESTIMATES}  # fmt: skip


def _lookup(record: RunRecord, key: str) -> object:
    """The record's value of a config key; `method` itself is the group's option."""
    if key in record.choices:
        return record.choices[key]
    value: object = record.config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _params(cells: dict, backbone: str, number: int) -> int | str:
    return next(
        (_any(runs).params["adapter"] for (name, row, _), runs in cells.items() if (name, row) == (backbone, number)),
        "",
    )


def _speed(runs: Runs) -> float:
    """Training rows per second of a whole packed run, averaged over the cell's runs."""
    found = [record for by_seed in runs.values() for record in by_seed.values()]
    return float(np.mean([record.rows_per_second * (1 + len(record.packed_with)) for record in found]))


def _any(runs: Runs) -> RunRecord:
    return next(iter(next(iter(runs.values())).values()))


def _line(texts: list[str]) -> str:
    return f"| {' | '.join(texts)} |"
