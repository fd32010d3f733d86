"""A table as LaTeX (booktabs): the papers' estimate, ours above the published row."""

from melora_bench.estimates import ESTIMATES

ESCAPES = str.maketrans({"_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "±": r"$\pm$"})


def latex(table: dict, rows: list[dict]) -> str:
    """rows: the lines of the CSV with their scores. One tabular per backbone, in the order of the Markdown."""
    tasks = [*table["tasks"], *([table["average"]] if table["average"] else [])]
    lines = [f"% {table['title']}. Needs \\usepackage{{booktabs}}."]
    for backbone in dict.fromkeys(row["backbone"] for row in rows):
        mine = [row for row in rows if row["backbone"] == backbone]
        lines += [
            f"% {backbone}: {ESTIMATES['best']}",
            rf"\begin{{tabular}}{{lr{'r' * len(tasks)}}}",
            r"\toprule",
            _line("method", "parameters", *tasks),
            r"\midrule",
            *_rows(mine, tasks),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    return "\n".join(lines) + "\n"


def _rows(rows: list[dict], tasks: list[str]) -> list[str]:
    usual = max((row["seeds"] for row in rows if row["seeds"]), default=0)
    lines = []
    for label in dict.fromkeys(row["row"] for row in rows):
        by_task = {row["task"]: row for row in rows if row["row"] == label}
        params = next((f"{row['adapter_params']:,}" for row in by_task.values() if row["adapter_params"] != ""), "")
        scores = [by_task[task]["scores"] for task in tasks]
        lines.append(_line(label, params, *(found["best"].text(usual) if found else "" for found in scores)))
        if name := next((row["published_backbone"] for row in by_task.values() if row["published"]), None):
            lines.append(
                _line(rf"\emph{{published, {name}}}", "", *(by_task[task]["published"] for task in tasks), escape=False)
            )
    return lines


def _line(*texts: str, escape: bool = True) -> str:
    return " & ".join(text.translate(ESCAPES) if escape else text for text in texts) + r" \\"
