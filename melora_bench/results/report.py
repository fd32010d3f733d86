"""One HTML file with every table, figure, verdict and run: it needs no network and can be sent by mail."""

import base64
import html
import json
import logging
import re
from pathlib import Path

from melora_bench.files import ROOT, options, write_text
from melora_bench.records import records
from melora_bench.records.records import RunRecord
from melora_bench.results import audit
from melora_bench.results.layout import block, estimates, heading, judged, seen_note, seen_tasks
from melora_bench.results.markdown import footer
from melora_bench.results.tables import Assembled, assemble, experiments, load_grid

log = logging.getLogger(__name__)
TEMPLATE = Path(__file__).with_suffix(".html")


def write(results_dir: str | None = None) -> Path:
    """Write <results_dir>/report.html from the records and figures there. Raises ValueError without that folder, and for a
    bad record of a table's own experiment; another experiment, such as a trial, is left out then, which the page says."""
    results = Path(results_dir or ROOT / "results")
    if not results.is_dir():
        raise ValueError(f"{results} is no folder: name the results_dir of finished runs")
    names = sorted(options("table"))
    own, left_out = {load_grid(name)["experiment"] for name in names}, []
    found: list[RunRecord] = []
    tables: dict[str, Assembled] = {}
    of_table = {experiment: name for name in names for experiment in experiments(name, results)}
    for experiment in sorted(path.name for path in (results / "runs").glob("*") if path.name != "adhoc"):
        try:
            it = assemble(of_table[experiment], str(results), experiment) if experiment in of_table else None
            found += records.load_all(results, experiment)
        except ValueError as error:
            if experiment in own:
                raise
            left_out.append(experiment)
            log.warning("%s is left out: %s", experiment, error)
            continue
        if it and it.cells:
            tables[experiment] = it
    backbones = sorted({record.model["name"] for record in found})
    summary = (
        f"{len(found)} runs on {', '.join(backbones) or 'no backbone'}, in {len(tables)} tables. Scores are percentages (a "
        "loss is itself), mean ± sd over seeds. Click a column to sort, a run to see its config, curve and environment."
    )
    if left_out:
        summary += f" Left out, as they cannot be read or shown: {', '.join(left_out)}."
    findings = _found()
    links = {name: it.table["title"] for name, it in tables.items()}
    links |= {"found": "What we found"} if findings else {}
    links |= {"runs-all": "Runs"}
    parts = {
        "summary": html.escape(summary),
        "nav": " ".join(f'<a href="#{html.escape(name)}">{html.escape(title)}</a>' for name, title in links.items()),
        "body": "\n".join([*(_section(name, it) for name, it in tables.items()), findings]),
        "data": json.dumps([_run(record) for record in found], separators=(",", ":"), allow_nan=False).replace(
            "<", "\\u003c"
        ),
    }
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], TEMPLATE.read_text(encoding="utf-8"))
    return write_text(results / "report.html", page)


def _section(name: str, it: Assembled) -> str:
    """A table's best-epoch and other estimates, its verdicts, figures and footnotes."""
    lines = [f'<h2 id="{html.escape(name)}">{html.escape(it.table["title"])}</h2>']
    for backbone in sorted({backbone for backbone, _, _ in it.cells}):
        rows, seen = [row for row in it.rows if row["backbone"] == backbone], seen_tasks(it.cells, backbone)
        for estimate, title in estimates(it.table).items():
            lines += [
                f"<h3>{html.escape(f'{heading(backbone, rows)}: {title}')}</h3>",
                _table(it.table, rows, seen, estimate),
            ]
        lines += [f"<p>{html.escape(seen_note(backbone))}</p>"] if seen else []
        lines.append(_list(html.escape(judged(row)) for row in rows if row["verdict"]))
        figures = sorted((it.results / "figures").glob(f"{name}_{backbone}_*.svg"))
        lines += ['<div class="figures">', *map(_image, filter(Path.is_file, figures)), "</div>"]
    if it.table.get("audit"):
        lines.append(_list(_inline(text) for text in audit.verdicts(it.table, it.cells)))
    notes = [line.removeprefix("- ") for line in footer(it.cells, set(filter(None, it.obstacles.values()))) if line]
    return "\n".join([*lines, '<div class="note">', _list(map(html.escape, notes)), "</div>"])


def _table(table: dict, rows: list[dict], seen: set[str], estimate: str) -> str:
    head, found = block(table, rows, seen, estimate)
    body = "".join(
        _row("published", f"{line.label}: published, {line.published}", *line.texts)
        if line.published
        else _row("", line.label, *line.texts)
        for line in found
    )
    names = "".join(f"<th>{html.escape(text)}</th>" for text in head)
    return f'<div class="scroll"><table class="sortable"><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>'


def _row(kind: str, *texts: str) -> str:
    return f'<tr class="{kind}">' + "".join(f"<td>{html.escape(text)}</td>" for text in texts) + "</tr>"


def _list(items) -> str:
    texts = [f"<li>{text}</li>" for text in items]
    return f"<ul>{''.join(texts)}</ul>" if texts else ""


def _image(path: Path) -> str:
    """The drawing as an image, in which no script runs, whoever put the file there."""
    content = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{html.escape(path.stem)}" src="data:image/svg+xml;base64,{content}">'


def _found() -> str:
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


def _run(record: RunRecord) -> dict:
    """What the page shows of one run."""
    metric = record.metric
    scale = 1 if metric == "loss" else 100
    entries = [*record.epochs, records.best_epoch(record)]
    *epochs, best = [
        [e["epoch"], round(scale * e["metrics"][metric], 4), e["train_loss"], e["penalty"]] for e in entries
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
