"""Draw every figure that a table's records allow."""

from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from melora_bench.results.assembled import assemble
from melora_bench.results.figures import curves, forest, parameters, spectrum, sweep
from melora_bench.results.figures.style import STYLE, save
from melora_bench.results.sections import Section


def draw(name: str, results_dir: str | Path | None = None, experiment: str | None = None) -> list[Path]:
    """Write <results_dir>/figures/<table>_<backbone>_<kind>.svg and .png of every figure that the table's records
    allow, and remove the files of those that they no longer allow. The records of another experiment than the table's
    own make figures of that name.

    Raises ValueError for a bad record. A table without records has no figures.
    """
    assembled, paths = assemble(name, results_dir, experiment), []
    for section in assembled.sections if assembled.cells else []:
        for kind, figure in _figures(section):
            stem = assembled.results / "figures" / f"{experiment or name}_{section.backbone}_{kind}"
            if figure:
                paths += save(figure, stem)
            else:
                for end in ("svg", "png"):
                    stem.with_name(f"{stem.name}.{end}").unlink(missing_ok=True)
    return paths


def _figures(section: Section) -> Iterator[tuple[str, Figure | None]]:
    """(kind, figure) of one backbone, None where the records do not allow it."""
    with mpl.rc_context(STYLE):
        yield "curves", curves.figure(section)
        yield "parameters", parameters.figure(section)
        yield "differences", forest.figure(section)
        for number, (x_key, line_key) in enumerate(section.table.sweeps, 1):
            yield f"sweep{number}", sweep.figure(section, str(x_key), line_key)
        if section.table.spectrum:
            yield "spectrum", spectrum.figure(section)
