"""One HTML file with every table, figure, verdict and run: it needs no network and can be sent by mail."""

import base64
import html
import json
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from melora_bench.files import ROOT, options, write_text
from melora_bench.grids.tables import load_table
from melora_bench.records import records
from melora_bench.records.records import RunRecord
from melora_bench.results import audit
from melora_bench.results.assembled import Assembled, assemble, experiments
from melora_bench.results.markdown import footer
from melora_bench.results.sections import Section, estimate_titles, judged

log = logging.getLogger(__name__)
TEMPLATE = Path(__file__).with_suffix(".html")


def write(results_dir: str | None = None) -> Path:
    """Write <results_dir>/report.html from the records and figures there. Raises ValueError without that folder, and
    for a bad record of a table's own experiment; another experiment, such as a trial, is left out then, which the page
    says."""
    results = Path(results_dir or ROOT / "results")
    if not results.is_dir():
        raise ValueError(f"{results} is no folder: name the results_dir of finished runs")
    contents = _read(results)
    tables = contents.tables
    findings = _findings()
    links = {name: table.table.title for name, table in tables.items()}
    links |= ({"found": "What we found"} if findings else {}) | {"runs-all": "Runs"}
    runs = json.dumps([_run(record) for record in contents.records], separators=(",", ":"), allow_nan=False)
    parts = {
        "summary": html.escape(contents.summary),
        "nav": " ".join(f'<a href="#{html.escape(name)}">{html.escape(title)}</a>' for name, title in links.items()),
        "body": "\n".join([*(_table(name, table) for name, table in tables.items()), findings]),
        "data": runs.replace("<", "\\u003c"),
    }
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], TEMPLATE.read_text(encoding="utf-8"))
    return write_text(results / "report.html", page)


@dataclass(frozen=True, kw_only=True)
class _Contents:
    """What a results folder holds."""

    records: list[RunRecord]
    tables: dict[str, Assembled]  # by experiment
    left_out: list[str]  # experiments that cannot be read or shown

    @property
    def summary(self) -> str:
        backbones = sorted({record.model["name"] for record in self.records})
        text = (
            f"{len(self.records)} runs on {', '.join(backbones) or 'no backbone'}, in {len(self.tables)} tables. "
            "Scores are percentages (a loss is itself), mean ± sd over seeds. Click a column to sort, a run to see its "
            "config, curve and environment."
        )
        left_out = f" Left out, as they cannot be read or shown: {', '.join(self.left_out)}."
        return text + left_out if self.left_out else text


def _read(results: Path) -> _Contents:
    """Raises ValueError for a bad record of a table's own experiment;
    another experiment is left out, with a warning."""
    names = sorted(options("table"))
    table_experiments = {load_table(name).experiment for name in names}
    of_table = {experiment: name for name in names for experiment in experiments(name, results)}
    contents = _Contents(records=[], tables={}, left_out=[])
    for experiment in sorted(path.name for path in (results / "runs").glob("*") if path.name != "adhoc"):
        try:
            table = assemble(of_table[experiment], results, experiment) if experiment in of_table else None
            loaded = records.load_all(results, experiment)
        except ValueError as error:
            if experiment in table_experiments:
                raise
            contents.left_out.append(experiment)
            log.warning("%s is left out: %s", experiment, error)
            continue
        contents.records.extend(loaded)
        if table and table.cells:
            contents.tables[experiment] = table
    return contents


def _table(name: str, assembled: Assembled) -> str:
    """A table's best-epoch and other estimates, its verdicts, figures and footnotes."""
    table = assembled.table
    lines = [f'<h2 id="{html.escape(name)}">{html.escape(table.title)}</h2>']
    for section in assembled.sections:
        for estimate, title in estimate_titles(table).items():
            lines += [f"<h3>{html.escape(f'{section.heading}: {title}')}</h3>", _block(section, estimate)]
        lines += [f"<p>{html.escape(section.seen_note)}</p>"] if section.seen_tasks else []
        lines.append(_list(html.escape(judged(line)) for line in section.lines if line.verdict))
        figures = sorted((assembled.results / "figures").glob(f"{name}_{section.backbone}_*.svg"))
        lines += ['<div class="figures">', *map(_image, filter(Path.is_file, figures)), "</div>"]
    if table.audit:
        lines.append(_list(_inline(text) for text in audit.verdicts(table, assembled.cells)))
    notes = [line.removeprefix("- ") for line in footer(assembled) if line]
    return "\n".join([*lines, '<div class="note">', _list(map(html.escape, notes)), "</div>"])


def _block(section: Section, estimate: str) -> str:
    head, printed = section.block(estimate)
    body = "".join(
        _row("published", f"{line.label}: published, {line.published}", *line.texts)
        if line.published
        else _row("", line.label, *line.texts)
        for line in printed
    )
    names = "".join(f"<th>{html.escape(text)}</th>" for text in head)
    table = f'<table class="sortable"><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll">{table}</div>'


def _row(kind: str, *texts: str) -> str:
    return f'<tr class="{kind}">' + "".join(f"<td>{html.escape(text)}</td>" for text in texts) + "</tr>"


def _list(items: Iterable[str]) -> str:
    texts = [f"<li>{text}</li>" for text in items]
    return f"<ul>{''.join(texts)}</ul>" if texts else ""


def _image(path: Path) -> str:
    """The drawing as an image, in which no script runs, whoever put the file there."""
    content = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{html.escape(path.stem)}" src="data:image/svg+xml;base64,{content}">'


def _findings() -> str:
    """The findings of docs/methods.md."""
    page = ROOT / "docs" / "methods.md"
    if not page.is_file():  # an installed package has no docs/
        return ""
    text = page.read_text(encoding="utf-8").partition("## What we found")[2]
    return '<h2 id="found">What we found</h2>' + _list(
        _inline(line[2:]) for line in text.splitlines() if line.startswith("* ")
    )


def _inline(text: str) -> str:
    """Bold, code and links of one Markdown line."""
    text = html.escape(text)
    text = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", text)
    text = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text)
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", text)


def _run(record: RunRecord) -> dict[str, object]:
    """What the page shows of one run."""
    metric = record.metric
    scale = 1 if metric == "loss" else 100
    entries = [*record.epochs, records.best_epoch(record)]
    *epochs, best = [
        [entry["epoch"], round(scale * entry["metrics"][metric], 4), entry["train_loss"], entry["penalty"]]
        for entry in entries
    ]
    return {
        "run_id": record.run_id,
        **{key: record.choices[key] for key in ("task", "method")},
        "backbone": record.model["name"],
        **{key: getattr(record, key) for key in ("seed", "metric", "config", "env", "git", "model")},
        "epochs": epochs,
        "best": best[:2],
        "params": record.params["adapter"],
        "seconds": record.wall_seconds,
    }
