"""A table as Markdown: a block per backbone and estimate, published rows under the estimate that the papers use, a
footer."""

import re
from collections.abc import Iterable

from melora_bench.records.records import RunRecord, parts
from melora_bench.results import audit
from melora_bench.results.assembled import Assembled
from melora_bench.results.estimates import all_records, any_record
from melora_bench.results.sections import Section, estimate_titles, judged
from melora_bench.results.stats import false_alarms


def markdown(assembled: Assembled) -> str:
    """The whole text of the table's .md file."""
    table = assembled.table
    lines = [f"# {escaped(table.title)}", ""]
    for section in assembled.sections:
        for estimate, title in estimate_titles(table).items():
            if estimate == "best" or assembled.cells:
                heading = f"## {escaped(section.heading)}: {title}"
                lines += [heading, "", *_block(section, estimate), ""]
        verdicts = [judged(line) for line in section.lines if line.verdict and line.verdict.kind != "not_comparable"]
        if verdicts:
            lines += ["Verdicts on the best epoch:", "", *(f"- {escaped(text)}" for text in verdicts), ""]
        lines += [escaped(section.seen_note), ""] if section.seen_tasks else []
    if any(line.certainty for line in assembled.lines):
        text = f"95 %: the t interval of the average, over seeds. Beats {table.rival}: at what share of tasks and seeds"
        lines += [escaped(f"{text}; ties count half."), ""]
    if table.audit:
        lines += ["## Verdicts", "", *(f"* {text}" for text in audit.verdicts(table, assembled.cells)), ""]
    return "\n".join([*lines, *map(escaped, footer(assembled))]) + "\n"


def escaped(text: str) -> str:
    """A text as one line of Markdown, in which no markup, link or HTML begins and no cell of a table ends."""
    return re.sub(r"[\\`*|<\[\]]", r"\\\g<0>", " ".join(text.split()))


def footer(assembled: Assembled) -> list[str]:
    """Lines that say what made the numbers: commits, devices, weights, data, and how they differ from the paper's."""
    records = [record for runs in assembled.cells.values() for record in all_records(runs)]
    if not records:
        return ["No records yet: only published numbers are shown."]
    made = [part for record in records for part in parts(record)]
    first = {(key.backbone, key.task): any_record(runs) for key, runs in assembled.cells.items()}
    weights = (f"{record.model['name']} sha256 {str(record.model['sha256'])[:10]}" for record in records)
    lines = [
        f"Mean ± sd over seeds, in percent; (k) marks a cell with k seeds. {len(records)} records.",
        "",
        f"- commits: {_joined(_commit(git) for git, _ in made)}",
        f"- devices: {_joined(env['device'] + ', precision ' + env['precision'] for _, env in made)}",
        f"- weights: {_joined(weights)}",
        f"- data: {_joined(_data(task, record) for (_, task), record in first.items() if record)}",
    ]
    lines += [f"- not the paper's settings: {text}" for text in assembled.obstacles]
    apart = assembled.table.not_compared
    lines += [f"- not compared with the paper's: {key} ({reason})" for key, reason in apart.items()]
    return [*lines, _rule()] if assembled.table.paper else lines


def _rule() -> str:
    """How a verdict is reached, and how often it is wrong."""
    alone, best = ([f"{100 * false_alarms(seeds, settings):.1f} %" for seeds in (3, 5)] for settings in (1, 3))
    return (
        "- verdicts: ours agrees if it is no further from the published number than t(n - 1, 97.5 %) sd sqrt(1/n + "
        "1/m) plus half a unit of its last digit, with n seeds of ours and m of the paper's. Simulated: two samples of "
        f"one normal law differ in {' (3 seeds) or '.join(alone)} (5 seeds) of cases, the best of three n of each in "
        f"{' or '.join(best)}. To agree is not to be equal: with few seeds only large differences show."
    )


def _block(section: Section, estimate: str) -> list[str]:
    head, printed = section.block(estimate)
    labels = [f"*published, {escaped(line.published)}*" if line.published else escaped(line.label) for line in printed]
    body = [_line(label, *map(escaped, line.texts)) for label, line in zip(labels, printed, strict=True)]
    return [_line(*map(escaped, head)), _line("---", *["---:"] * (len(head) - 1)), *body]


def _joined(texts: Iterable[str]) -> str:
    return ", ".join(sorted(set(texts)))


def _commit(git: dict[str, str]) -> str:
    return f"{(git['commit'] or 'none')[:10]}{' (dirty tree)' if git['dirty'] else ''}"


def _data(task: str, record: RunRecord) -> str:
    texts = [
        f"{name} {part['rows']} rows, sha256 {part['sha256'][0][:10]}" if part else f"{name} missing"
        for name, part in record.data.items()
    ]
    if (ceiling := record.epochs[-1]["metrics"].get("ceiling")) is not None:
        texts.append(f"at most {100 * ceiling:.2f}: what the authors' own solutions reach after the protocol's cut")
    label = next((part["label"] for part in record.data.values() if part and "label" in part), task)
    return f"{label} ({'; '.join(texts)})"


def _line(*texts: str) -> str:
    return f"| {' | '.join(texts)} |"
