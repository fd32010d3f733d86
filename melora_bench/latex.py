"""A table as LaTeX (booktabs): the papers' estimate, ours above the published row."""

from melora_bench.layout import Line, block, estimates, scored

ESCAPES = str.maketrans({"_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "±": r"$\pm$"})


def latex(table: dict, rows: list[dict]) -> str:
    """rows: the lines of the CSV with their scores. One tabular per backbone, in the order of the Markdown."""
    columns = scored(table)
    lines = [f"% {table['title']}. Needs \\usepackage{{booktabs}}."]
    for backbone in dict.fromkeys(row["backbone"] for row in rows):
        _, found = block(table, [row for row in rows if row["backbone"] == backbone], set(), "best")
        lines += [
            f"% {backbone}: {estimates(table)['best']}",
            rf"\begin{{tabular}}{{lr{'r' * len(columns)}}}",
            r"\toprule",
            _joined("method", "parameters", *columns),
            r"\midrule",
            *(_line(line, 1 + len(columns)) for line in found),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    return "\n".join(lines) + "\n"


def _line(line: Line, columns: int) -> str:
    if line.published:
        return _joined(rf"\emph{{published, {line.published}}}", *line.texts[:columns], escape=False)
    return _joined(line.label, *line.texts[:columns])


def _joined(*texts: str, escape: bool = True) -> str:
    return " & ".join(text.translate(ESCAPES) if escape else text for text in texts) + r" \\"
