"""The papers' printed numbers: every printed average agrees with the cells it averages."""

import collections

import pytest

from melora_bench.results import published
from melora_bench.results.published import Cell

PAPERS = sorted(path.stem for path in published.FOLDER.glob("*.csv"))
# Printed averages that do not agree with their own printed cells: {(paper, table, method, variant): (printed, mean)}.
DISCREPANCIES: dict[tuple[str, str, str, str], tuple[float, float]] = {}


def averages() -> list[tuple]:
    """((paper, table, method, variant), printed average, its cells) wherever all N cells of an 'average of N' are
    there."""
    found = []
    for paper in PAPERS:
        for key, group in published.load(paper).groupby(["table", "method", "variant"], sort=False):
            cells = [
                Cell(row.value, row.backbone, row.source)
                for row in group.itertuples()
                if row.metric != "mixed" and row.value
            ]
            for row in group[group["task"].str.fullmatch(r"average of \d+") & (group["value"] != "")].itertuples():
                if len(cells) == int(row.task.split()[-1]):
                    found.append(
                        ((paper, *key), Cell(row.value, row.backbone, row.source), [cell.value for cell in cells])
                    )
    return found


def test_the_averages_that_can_be_checked():
    """15 rows of MPLoRA print all their cells; MELoRA's cells could not be recovered, so its averages stand alone."""
    assert collections.Counter(key[:2] for key, _, _ in averages()) == {("mplora", "1"): 10, ("mplora", "2"): 5}


@pytest.mark.parametrize(("key", "printed", "cells"), averages(), ids=[" ".join(key) for key, _, _ in averages()])
def test_a_printed_average_is_the_mean_of_its_cells(key, printed, cells):
    mean = sum(cells) / len(cells)
    agrees = abs(mean - printed.value) <= printed.half_unit + 1e-9  # binary fractions
    assert agrees == (key not in DISCREPANCIES), f"printed {printed.text}, mean of the cells {mean:.4f}"
    if not agrees:
        assert DISCREPANCIES[key] == pytest.approx((printed.value, mean), abs=1e-4)


@pytest.mark.parametrize("paper", PAPERS)
def test_a_papers_cells_are_numbers_with_a_source_and_appear_once(paper):
    cells = published.load(paper)
    assert set(cells["paper"]) == {paper}
    assert not cells.duplicated(["table", "method", "variant", "backbone", "task"]).any()
    assert (cells["source"] != "").all()
    assert all(0 < float(text) < 100 for text in cells["value"] if text)
    blank = cells[cells["value"] == ""]
    assert (blank["note"] != "").all()  # a cell that could not be recovered says why


def test_the_headline_averages():
    mplora, melora = published.index("mplora", "2"), published.index("melora", "2")
    assert mplora["lora", "", "average of 6"].value == 82.18
    assert mplora["melora", "best n of 2;4;8", "average of 6"].value == 81.83
    assert mplora["mplora", "best n of 2;4;8", "average of 6"].value == 82.86
    assert melora["melora", "r=8, best n of 2;4;8", "average of 8"].value == 87.52
    assert melora["lora", "r=8", "average of 8"].value == 86.79


def test_index_leaves_out_blank_cells_and_other_tables():
    cells = published.index("mplora", "2")
    assert len(cells) == 40  # 6 rows of 7, less two blanks of AdaLoRA
    assert ("adalora", "", "rte") in cells
    assert ("adalora", "", "cola") not in cells
    assert ("lora", "n=1", "mrpc") not in cells
    assert (
        cells["lora", "", "mrpc"].seeds == 3
        and published.index("melora", "2")["lora", "r=8", "average of 8"].seeds == 5
    )
    assert published.index("mplora", "99") == {}


@pytest.mark.parametrize(
    ("text", "half"), [("87.52", 0.005), ("88.4", 0.05), ("77.0", 0.05), ("0.125", 0.0005), ("87", 0.5)]
)
def test_half_a_unit_of_the_last_printed_digit(text, half):
    assert Cell(text, "", "").half_unit == pytest.approx(half)


def test_other_columns_are_refused_by_file_name(tmp_path):
    text = (published.FOLDER / "melora.csv").read_text()
    (tmp_path / "melora.csv").write_text(text.replace("spread", "sd", 1))
    with pytest.raises(ValueError, match=r"melora\.csv must have the columns paper, table, .*, spread, "):
        published.load("melora", tmp_path)
    assert list(published.load("melora").columns) == published.COLUMNS


def test_mplora_prints_no_parameter_count_of_adalora():
    cells = published.load("mplora")
    assert set(cells[cells["method"] == "adalora"]["params"]) == {""}
    assert set(cells[(cells["method"] == "lora") & (cells["table"] == "2")]["params"]) == {"294912"}
