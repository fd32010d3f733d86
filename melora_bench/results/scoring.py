"""From the cells of a table to its lines: scores, averages, and verdicts beside the published numbers."""

import dataclasses
from dataclasses import dataclass

from melora_bench.grids.tables import Row, Table
from melora_bench.results import published
from melora_bench.results.cells import CellKey, Cells
from melora_bench.results.estimates import Kind, Runs, Scores, all_records, any_record, average, certainty, scores
from melora_bench.results.lines import TableLine
from melora_bench.results.verdicts import Obstacle, Obstacles, judge, obstacles_of, on_task

RecordObstacles = dict[tuple[int, str], Obstacles]  # by row number and run_id


@dataclass(frozen=True, kw_only=True)
class _RowLines:
    """What a row prints of one kind on one backbone: a line per task, and what else the line of their average needs."""

    row: Row
    lines: list[TableLine]
    obstacles: Obstacles  # of all tasks

    @property
    def tasks(self) -> list[Scores]:
        """The scores of all tasks; empty unless every task has a score, and a seed that every other has."""
        task_scores = [line.scores for line in self.lines]
        return task_scores if all(task_scores) and average(task_scores) else []


def record_obstacles(table: Table, cells: Cells) -> RecordObstacles:
    """What keeps each record of a table from being held against the paper."""
    return {
        (key.row, record.run_id): obstacles_of(record, table, table.rows[key.row])
        for key, runs in cells.items()
        for record in all_records(runs)
    }


def table_lines(table: Table, cells: Cells, obstacles: RecordObstacles) -> list[TableLine]:
    """The lines of the CSV: backbone x row (best and mean, where it selects) x task, then the average over tasks.

    A line has scores if every value that its row lists has a record, an average if every task has a score. Averages
    also have their certainty, which compares them with the row's reference, where that has an average.
    """
    printed, lines = published.of_table(table), []
    for backbone in sorted({key.backbone for key in cells}) or [table.backbone]:
        of_rows = [
            part
            for number, row in enumerate(table.rows)
            for part in _row_lines(table, number, backbone, cells, obstacles, printed)
        ]
        averaged: dict[str, _RowLines] = {}  # by the row's label, the first of its kinds
        for part in of_rows:
            if table.average and part.tasks:
                averaged.setdefault(part.row.label, part)
        for part in of_rows:
            lines += part.lines
            if table.average:
                reference = averaged.get(table.reference(part.row) or "")
                lora = reference.tasks if reference and reference is not part else None
                lines.append(_average_line(part, table.average, lora, printed))
    return lines


def _row_lines(
    table: Table, number: int, backbone: str, cells: Cells, obstacles: RecordObstacles, printed: published.Printed
) -> list[_RowLines]:
    """What one row prints on one backbone, by kind."""
    row, parts = table.rows[number], []
    runs = {task: cells.get(CellKey(backbone, number, task), {}) for task in table.tasks}
    for kind, suffix, values in kinds(row, runs):
        lines: list[TableLine] = []
        why: list[Obstacle] = []
        for task in table.tasks:
            line = TableLine(backbone=backbone, number=number, label=row.label + suffix, kind=kind, task=task)
            of_kind = {value: by_seed for value, by_seed in runs[task].items() if value in values}
            complete = {value: of_kind[value] for value in values} if set(of_kind) == set(values) else {}
            line = _measured(line, of_kind, complete)
            reasons = dict.fromkeys(one for record in all_records(complete) for one in obstacles[number, record.run_id])
            why += on_task(task, tuple(reasons))
            lines.append(_compared(line, row, tuple(reasons), printed))
        parts.append(_RowLines(row=row, lines=lines, obstacles=tuple(why)))
    return parts


def kinds(row: Row, runs: dict[str, Runs]) -> list[tuple[Kind, str, list[str]]]:
    """The lines that a row prints, as (kind, suffix of the label, values of the setting that the row selects over).

    A plain row prints `single`. A row that selects prints `best` and `mean` and, while values are missing for a task,
    each value that there is alone. runs: by task.
    """
    if not row.over:
        return [("single", "", [""])]
    values, name = row.values(row.over), row.over.removeprefix("method.")
    there = {value for of_task in runs.values() for value in of_task}
    complete = all(set(of_task) in (set(), set(values)) for of_task in runs.values())
    lines: list[tuple[Kind, str, list[str]]] = [
        ("best", f", best {name}", values),
        ("mean", f", mean over {name}", values),
    ]
    if not complete:
        lines += [("alone", f", {name}={value} alone", [value]) for value in values if value in there]
    return lines


def _measured(line: TableLine, runs: Runs, complete: Runs) -> TableLine:
    """The line with what its runs have in common, and with scores if they are complete."""
    record = any_record(runs)
    if not record:
        return line
    rates = [one.rows_per_second * (1 + len(one.packed_with)) for one in all_records(runs) if one.rows_per_second]
    estimates, chosen = scores(complete, line.kind) if complete else ({}, "")
    return dataclasses.replace(
        line,
        metric=record.metric,
        adapter_params=record.params["adapter"],
        rows_per_second=sum(rates) / len(rates) if rates else None,
        scores=estimates,
        chosen=chosen,
    )


def _average_line(part: _RowLines, name: str, lora: list[Scores] | None, printed: published.Printed) -> TableLine:
    """The line of the average over the tasks of a row; blank unless every task has a score."""
    first, tasks = part.lines[0], part.tasks
    line = TableLine(
        backbone=first.backbone,
        number=first.number,
        label=first.label,
        kind=first.kind,
        task=name,
        scores=average(tasks) if tasks else {},
        certainty=certainty(tasks, lora) if tasks else {},
    )
    return _compared(line, part.row, part.obstacles, printed)


def _compared(line: TableLine, row: Row, obstacles: Obstacles, printed: published.Printed) -> TableLine:
    """The line with its published number and, where it has scores, the verdict."""
    if line.kind not in row.published:
        return line
    cell = printed.get((row.published.get("method", row.method), row.published[line.kind], line.task))
    verdict = judge(line.scores["best"], cell, obstacles) if line.scores and cell else None
    return dataclasses.replace(line, published=cell, verdict=verdict)
