"""The columns and rows of a table as texts, which its Markdown, LaTeX and HTML share."""

from dataclasses import dataclass

from melora_bench.grids.grid import rival
from melora_bench.records.records import RunRecord
from melora_bench.results.estimates import ESTIMATES, Runs, all_records


@dataclass(frozen=True)
class Line:
    """One printed line of a table."""

    label: str
    published: (
        str  # the backbone of the published numbers that this line holds, and whether they were read elsewhere than in
    )
    # the paper; empty: the numbers are ours
    texts: list[str]  # one per column after the first


def scored(table: dict) -> list[str]:
    """The tasks, then the average where the table has one."""
    return [*table["tasks"], *([table["average"]] if table["average"] else [])]


def estimates(table: dict) -> dict[str, str]:
    """The estimates that say different things of a table. A model that is scored once, after training, has no last epoch."""
    if "trained_on" not in table:
        return ESTIMATES
    return {
        "best": "adapters of the lowest validation loss; r or n by the reported score, as the papers select",
        "split": "the same, r or n chosen on one half of the questions and scored on the other, both ways",
    }


def block(table: dict, rows: list[dict], seen: set[str], estimate: str) -> tuple[list[str], list[Line]]:
    """(column names, lines) of one backbone and estimate; published numbers stand under the estimate that the papers use.

    rows: the lines of the CSV with their scores. seen: the tasks to mark. Columns: method, parameters, the scores, then
    how sure their average is and the speed, where the table has them.
    """
    columns = scored(table)
    speed = ["rows/s"] if table.get("speed") else []
    certain = ["bootstrap 95 %", f"beats {rival(table)}"] if any(row["sure"] for row in rows) else []
    head = ["method", "adapter params", *(f"{name} †" if name in seen else name for name in columns), *certain, *speed]
    usual = _usual(rows)
    lines = []
    for label in dict.fromkeys(row["row"] for row in rows):
        cells = {row["task"]: row for row in rows if row["row"] == label}
        params = next((f"{row['adapter_params']:,}" for row in cells.values() if row["adapter_params"] != ""), "")
        texts = [cells[name]["scores"][estimate].text(usual) if cells[name]["scores"] else "" for name in columns]
        last = cells[columns[-1]]
        texts += [last[f"{estimate}_interval"], last[f"{estimate}_beats_lora"]] if certain else []
        texts += [" / ".join(filter(None, (row["rows_per_second"] for row in cells.values())))] if speed else []
        lines.append(Line(label, "", [params, *texts]))
        name = next((row["published_backbone"] for row in cells.values() if row["published"]), "")
        if name and estimate == "best":
            name += ", second-hand" * any(row["published_source"].startswith("secondary") for row in cells.values())
            texts = ["", *(cells[name]["published"] for name in columns), *[""] * len(certain + speed)]
            lines.append(Line(label, name, texts))
    return head, lines


def heading(backbone: str, rows: list[dict]) -> str:
    """The backbone of these rows, and how many seeds a cell has that says nothing else."""
    count = _usual(rows)
    return f"{backbone}, {count} seed{'s' * (count > 1)}" if count else backbone


def judged(row: dict) -> str:
    """A line of the CSV and its verdict in words."""
    difference = f" (ours - published {row['difference']})" if row["difference"] else ""
    return f"{row['row']}, {row['task']}: {row['verdict']}{difference}"


def any_record(runs: Runs) -> RunRecord | None:
    """One of a cell's records, for what all of them share."""
    return next(all_records(runs), None)


def seen_tasks(cells: dict, backbone: str) -> set[str]:
    """The tasks whose texts the backbone's training saw."""
    first = {task: any_record(runs) for (name, _, task), runs in cells.items() if name == backbone}
    return {task for task, record in first.items() if task in record.config["backbone"]["seen"]}


def seen_note(backbone: str) -> str:
    return f"† the training of {backbone} saw texts of these tasks."


def _usual(rows: list[dict]) -> int:
    return max((row["seeds"] for row in rows if row["seeds"]), default=0)
