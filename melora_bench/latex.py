"""A table as LaTeX (booktabs): the papers' estimate, ours above the published row."""

from melora_bench.layout import Line, block, estimates, heading, scored
from melora_bench.markdown import footer

ESCAPES = str.maketrans({"_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "±": r"$\pm$"})


def latex(table: dict, rows: list[dict], cells: dict, obstacles: set[str]) -> str:
    """One tabular per backbone, in the order of the Markdown, whose arguments these are; its footer as comments."""
    columns = scored(table)
    lines = [f"% {table['title']}. Needs \\usepackage{{booktabs}}."]
    for backbone in dict.fromkeys(row["backbone"] for row in rows):
        mine = [row for row in rows if row["backbone"] == backbone]
        _, found = block(table, mine, set(), "best")
        lines += [
            f"% {heading(backbone, mine)}: {estimates(table)['best']}",
            rf"\begin{{tabular}}{{lr{'r' * len(columns)}}}",
            r"\toprule",
            _joined("method", "parameters", *columns),
            r"\midrule",
            *(_line(line, 1 + len(columns)) for line in found),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    lines += [f"% {line}".rstrip() for line in footer(cells, obstacles)]
    return "\n".join(lines) + "\n"


def _line(line: Line, columns: int) -> str:
    if line.published:
        return _joined(rf"\emph{{published, {line.published}}}", *line.texts[:columns], escape=False)
    return _joined(line.label, *line.texts[:columns])


def _joined(*texts: str, escape: bool = True) -> str:
    return " & ".join(text.translate(ESCAPES) if escape else text for text in texts) + r" \\"
