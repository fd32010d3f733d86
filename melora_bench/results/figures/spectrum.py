"""How many singular values of each layer's update are above 0.1 after training (MELoRA's figure 3)."""

import numpy as np
from matplotlib.figure import Figure

from melora_bench.results.estimates import all_records
from melora_bench.results.figures.style import finish, look, panels
from melora_bench.results.sections import Section

REPORTED = "singular_values_above_0.1"


def figure(section: Section) -> Figure | None:
    """The mean over seeds by layer, one line per row, a panel per task and module. None where no run counted them."""
    counts: dict[tuple[str, int], dict[str, list[int]]] = {}  # (panel, row) -> layer -> one count per seed
    counted = False
    for key, runs in section.cells.items():
        for record in all_records(runs):
            report = record.epochs[-1]["report"]
            counted = counted or REPORTED in report
            for layer, count in report.get(REPORTED, {}).items():
                module = f"{key.task}: {layer.rpartition('.')[2]}"
                counts.setdefault((module, key.row), {}).setdefault(layer, []).append(count)
    if not counted:
        return None
    drawing, by_module = panels(list(dict.fromkeys(module for module, _ in counts)), section.title)
    for (module, number), layers in counts.items():
        means = [float(np.mean(values)) for values in layers.values()]
        label = section.table.rows[number].label
        by_module[module].plot(range(len(means)), means, label=label, **look(number))
    finish(drawing, by_module, "layer", "singular values above 0.1")
    return drawing
