"""A table as LaTeX (booktabs): the papers' estimate, ours above the published row."""

from melora_bench.results.layout import Line, block, estimates, heading, scored
from melora_bench.results.markdown import footer

ESCAPES = str.maketrans({character: f"\\{character}" for character in "_%&#${}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "[": "{[}", "*": "{*}", "±": r"$\pm$",  # \\ takes a [ or * that follows
})  # fmt: skip


def latex(table: dict, rows: list[dict], cells: dict, obstacles: set[str]) -> str:
    """One tabular per backbone, in the order of the Markdown, whose arguments these are; its footer as comments."""
    columns = scored(table)
    lines = [_comment(f"{table['title']}. Needs \\usepackage{{booktabs}}.")]
    for backbone in dict.fromkeys(row["backbone"] for row in rows):
        mine = [row for row in rows if row["backbone"] == backbone]
        _, found = block(table, mine, set(), "best")
        lines += [
            _comment(f"{heading(backbone, mine)}: {estimates(table)['best']}"),
            rf"\begin{{tabular}}{{lr{'r' * len(columns)}}}",
            r"\toprule",
            _row(*_escaped("method", "parameters", *columns)),
            r"\midrule",
            *(_line(line, 1 + len(columns)) for line in found),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    lines += map(_comment, footer(cells, obstacles))
    return "\n".join(lines) + "\n"


def _line(line: Line, columns: int) -> str:
    first, *others = _escaped(line.published or line.label, *line.texts[:columns])
    return _row(rf"\emph{{published, {first}}}" if line.published else first, *others)


def _escaped(*texts: str) -> list[str]:
    return [" ".join(text.split()).translate(ESCAPES) for text in texts]


def _row(*cells: str) -> str:
    return " & ".join(cells) + r" \\"


def _comment(text: str) -> str:
    """On one line, whatever the text: what follows a line end would be no comment."""
    return f"% {' '.join(text.split())}".rstrip()
