"""The selection metric by epoch: mean and sd over the seeds, and over the values of n of a row that has several."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from melora_bench.results.estimates import all_records
from melora_bench.results.figures.style import band, finish, panels
from melora_bench.results.sections import Section


def figure(section: Section) -> Figure | None:
    """One panel per task, one line per row. None where no run has two epochs:
    a model that is scored once has no curve."""
    if all(len(record.epochs) < 2 for runs in section.cells.values() for record in all_records(runs)):
        return None
    drawing, by_task = panels(section.tasks, section.title)
    for key, runs in section.cells.items():
        records = list(all_records(runs))
        curves = [[entry["metrics"][record.metric] for entry in record.epochs] for record in records]
        values = 100 * np.array(curves)  # (runs, epochs)
        epochs = [entry["epoch"] for entry in records[0].epochs]
        sd = values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
        band(by_task[key.task], epochs, values.mean(0), sd, key.row, section.table.rows[key.row].label)
    for axes in by_task.values():
        locator: Any = axes.xaxis.get_major_locator()
        locator.set_params(integer=True)
    finish(drawing, by_task, "epoch", "score, %")
    return drawing
