"""A table as Markdown: a block per backbone and estimate, published rows under the estimate that the papers use, a footer."""

from melora_bench import audit
from melora_bench.estimates import ESTIMATES, Runs, all_records
from melora_bench.grid import reference
from melora_bench.records import RunRecord


def markdown(table: dict, rows: list[dict], cells: dict, obstacles: set[str]) -> str:
    """rows: the lines of the CSV with their scores; cells: the records behind them; obstacles to a comparison."""
    lines = [f"# {table['title']}", ""]
    for backbone in dict.fromkeys(row["backbone"] for row in rows):
        mine = [row for row in rows if row["backbone"] == backbone]
        first = {task: any_record(runs) for (name, _, task), runs in cells.items() if name == backbone}
        seen = {task for task, record in first.items() if task in record.config["backbone"]["seen"]}
        for estimate, title in ESTIMATES.items():
            if estimate == "best" or first:
                lines += [f"## {backbone}: {title}", "", *_block(table, mine, seen, estimate), ""]
        verdicts = [f"{row['row']}, {row['task']}: {row['verdict']}" for row in mine
                    if row["verdict"] and not row["verdict"].startswith("not comparable")]  # fmt: skip
        lines += ["Verdicts on the best epoch:", "", *(f"- {text}" for text in verdicts), ""] if verdicts else []
        lines += [f"† the training of {backbone} saw texts of these tasks.", ""] if seen else []
    if any(row["sure"] for row in rows):
        lines += ["Bootstrap intervals resample the seeds within each task; at few seeds they are too narrow.", ""]
    if table.get("audit"):
        lines += ["## Verdicts", "", *(f"* {text}" for text in audit.verdicts(table, cells)), ""]
    return "\n".join(lines + footer(cells, obstacles)) + "\n"


def any_record(runs: Runs) -> RunRecord | None:
    """One of a cell's records, for what all of them share."""
    return next(all_records(runs), None)


def _block(table: dict, rows: list[dict], seen: set[str], estimate: str) -> list[str]:
    tasks = [*table["tasks"], *([table["average"]] if table["average"] else [])]
    speed = ["rows/s"] if table.get("speed") else []
    certain = ["bootstrap 95 %", f"beats {reference(table)}"] if any(row["sure"] for row in rows) else []
    usual = max((row["seeds"] for row in rows if row["seeds"]), default=0)
    lines = [
        _line("method", "adapter params", *(f"{task} †" if task in seen else task for task in tasks), *certain, *speed)
    ]
    lines.append(_line("---", *["---:"] * (1 + len(tasks) + len(certain) + len(speed))))
    for label in dict.fromkeys(row["row"] for row in rows):
        by_task = {row["task"]: row for row in rows if row["row"] == label}
        texts = [by_task[task]["scores"][estimate].text(usual) if by_task[task]["scores"] else "" for task in tasks]
        params = next((f"{row['adapter_params']:,}" for row in by_task.values() if row["adapter_params"] != ""), "")
        rates = (
            [" / ".join(row["rows_per_second"] for row in by_task.values() if row["rows_per_second"])] if speed else []
        )
        last = by_task[tasks[-1]]
        certainty = [last[f"{estimate}_interval"], last[f"{estimate}_beats_lora"]] if certain else []
        lines.append(_line(label, params, *texts, *certainty, *rates))
        printed = next((row["published_backbone"] for row in by_task.values() if row["published"]), None)
        if printed and estimate == "best":
            blank = [""] * (len(certain) + len(speed))
            lines.append(_line(f"*published, {printed}*", "", *(by_task[task]["published"] for task in tasks), *blank))
    return lines


def footer(cells: dict, obstacles: set[str]) -> list[str]:
    found = [record for runs in cells.values() for record in all_records(runs)]
    if not found:
        return ["No records yet: only published numbers are shown."]

    def joined(texts) -> str:
        return ", ".join(sorted(set(texts)))

    first = {(backbone, task): any_record(runs) for (backbone, _, task), runs in cells.items()}
    lines = [
        f"Mean ± sd over seeds, in percent; (k) marks a cell with k seeds. {len(found)} records.",
        "",
        f"- commits: {joined(_commit(record) for record in found)}",
        f"- devices: {joined(record.env['device'] + ', precision ' + record.env['precision'] for record in found)}",
        f"- weights: {joined(record.model['name'] + ' sha256 ' + str(record.model['sha256'])[:10] for record in found)}",
        f"- data: {joined(_data(task, record) for (_, task), record in first.items())}",
    ]
    return lines + [f"- not the paper's settings: {text}" for text in sorted(obstacles)]


def _commit(record: RunRecord) -> str:
    return f"{(record.git['commit'] or 'none')[:10]}{' (dirty tree)' if record.git['dirty'] else ''}"


def _data(task: str, record: RunRecord) -> str:
    parts = [f"{name} {part['rows']} rows, sha256 {part['sha256'][0][:10]}" if part else f"{name} missing"
             for name, part in record.data.items()]  # fmt: skip
    return f"{task} ({'; '.join(parts)})"


def _line(*texts: str) -> str:
    return f"| {' | '.join(texts)} |"
