"""A table as LaTeX (booktabs): the papers' estimate, ours above the published row."""

from melora_bench.results.assembled import Assembled
from melora_bench.results.markdown import footer
from melora_bench.results.sections import PrintedLine, estimate_titles

ESCAPES = str.maketrans(
    {character: f"\\{character}" for character in "_%&#${}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "±": r"$\pm$"}
    | {"[": "{[}", "*": "{*}"}  # \\ takes a [ or * that follows
)


def latex(assembled: Assembled) -> str:
    """The whole text of the table's .tex file: one tabular per backbone, and the footer of the Markdown as comments."""
    table = assembled.table
    lines = [_comment(f"{table.title}. Needs \\usepackage{{booktabs}}.")]
    for section in assembled.sections:
        _, printed = section.block("best")
        lines += [
            _comment(f"{section.heading}: {estimate_titles(table)['best']}"),
            rf"\begin{{tabular}}{{lr{'r' * len(table.columns)}}}",
            r"\toprule",
            _row(*_escaped("method", "parameters", *table.columns)),
            r"\midrule",
            *(_line(line, 1 + len(table.columns)) for line in printed),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    lines += map(_comment, footer(assembled))
    return "\n".join(lines) + "\n"


def _line(line: PrintedLine, columns: int) -> str:
    first, *others = _escaped(line.published or line.label, *line.texts[:columns])
    return _row(rf"\emph{{published, {first}}}" if line.published else first, *others)


def _escaped(*texts: str) -> list[str]:
    return [" ".join(text.split()).translate(ESCAPES) for text in texts]


def _row(*cells: str) -> str:
    return " & ".join(cells) + r" \\"


def _comment(text: str) -> str:
    """On one line, whatever the text: what follows a line end would be no comment."""
    return f"% {' '.join(text.split())}".rstrip()
