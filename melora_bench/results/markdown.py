"""A table as Markdown: a block per backbone and estimate, published rows under the estimate that the papers use, a footer."""

import re

from melora_bench.records.records import RunRecord, parts
from melora_bench.results import audit
from melora_bench.results.estimates import all_records
from melora_bench.results.layout import any_record, block, estimates, heading, judged, seen_note, seen_tasks


def markdown(table: dict, rows: list[dict], cells: dict, obstacles: set[str]) -> str:
    """rows: the lines of the CSV with their scores; cells: the records behind them; obstacles to a comparison."""
    lines = [f"# {escaped(table['title'])}", ""]
    for backbone in dict.fromkeys(row["backbone"] for row in rows):
        mine = [row for row in rows if row["backbone"] == backbone]
        seen = seen_tasks(cells, backbone)
        for estimate, title in estimates(table).items():
            if estimate == "best" or cells:
                lines += [
                    f"## {escaped(heading(backbone, mine))}: {title}",
                    "",
                    *_block(table, mine, seen, estimate),
                    "",
                ]
        verdicts = [judged(row) for row in mine if row["verdict"] and not row["verdict"].startswith("not comparable")]
        lines += (
            ["Verdicts on the best epoch:", "", *(f"- {escaped(text)}" for text in verdicts), ""] if verdicts else []
        )
        lines += [escaped(seen_note(backbone)), ""] if seen else []
    if any(row["sure"] for row in rows):
        lines += ["Bootstrap intervals resample the seeds within each task; at few seeds they are too narrow.", ""]
    if table.get("audit"):
        lines += ["## Verdicts", "", *(f"* {text}" for text in audit.verdicts(table, cells)), ""]
    return "\n".join([*lines, *map(escaped, footer(cells, obstacles))]) + "\n"


def escaped(text: str) -> str:
    """A text as one line of Markdown, in which no markup, link or HTML begins and no cell of a table ends."""
    return re.sub(r"[\\`*|<\[\]]", r"\\\g<0>", " ".join(text.split()))


def _block(table: dict, rows: list[dict], seen: set[str], estimate: str) -> list[str]:
    head, found = block(table, rows, seen, estimate)
    labels = [f"*published, {escaped(line.published)}*" if line.published else escaped(line.label) for line in found]
    body = [_line(label, *map(escaped, line.texts)) for label, line in zip(labels, found, strict=True)]
    return [_line(*map(escaped, head)), _line("---", *["---:"] * (len(head) - 1)), *body]


def footer(cells: dict, obstacles: set[str]) -> list[str]:
    found = [record for runs in cells.values() for record in all_records(runs)]
    if not found:
        return ["No records yet: only published numbers are shown."]

    def joined(texts) -> str:
        return ", ".join(sorted(set(texts)))

    made = [part for record in found for part in parts(record)]
    first = {(backbone, task): any_record(runs) for (backbone, _, task), runs in cells.items()}
    lines = [
        f"Mean ± sd over seeds, in percent; (k) marks a cell with k seeds. {len(found)} records.",
        "",
        f"- commits: {joined(_commit(git) for git, _ in made)}",
        f"- devices: {joined(env['device'] + ', precision ' + env['precision'] for _, env in made)}",
        f"- weights: {joined(record.model['name'] + ' sha256 ' + str(record.model['sha256'])[:10] for record in found)}",
        f"- data: {joined(_data(task, record) for (_, task), record in first.items())}",
    ]
    return lines + [f"- not the paper's settings: {text}" for text in sorted(obstacles)]


def _commit(git: dict) -> str:
    return f"{(git['commit'] or 'none')[:10]}{' (dirty tree)' if git['dirty'] else ''}"


def _data(task: str, record: RunRecord) -> str:
    parts = [f"{name} {part['rows']} rows, sha256 {part['sha256'][0][:10]}" if part else f"{name} missing"
             for name, part in record.data.items()]  # fmt: skip
    if (ceiling := record.epochs[-1]["metrics"].get("ceiling")) is not None:
        parts.append(f"at most {100 * ceiling:.2f}: what the authors' own solutions reach after the protocol's cut")
    label = next((part["label"] for part in record.data.values() if part and "label" in part), task)
    return f"{label} ({'; '.join(parts)})"


def _line(*texts: str) -> str:
    return f"| {' | '.join(texts)} |"
