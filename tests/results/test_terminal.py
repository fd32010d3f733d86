"""A table as it is shown in a terminal."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from synthetic import record

from melora_bench.results import terminal
from melora_bench.results.assembled import assemble

FINITE = st.floats(-100, 100)


@given(st.lists(FINITE, min_size=2, max_size=9))
def test_bars_are_as_long_as_the_scores_are_high(values):
    low, high = min(values), max(values)
    bars = [terminal.bar(value, low, high) for value in values]
    assert {len(bar) for bar in bars} == {terminal.WIDTH}
    eighths = [8 * bar.count("█") + terminal.EIGHTHS.index(bar.strip("█ ") or " ") for bar in bars]
    for value, length in zip(values, eighths, strict=True):
        assert length == (64 if high == low else pytest.approx(1 + 63 * (value - low) / (high - low), abs=0.5))


@pytest.mark.parametrize(("width", "bars"), [(100, True), (60, False)])
def test_bars_stand_where_they_fit(tmp_path, width, bars):
    for method, score in {"lora": 0.9, "head": 0.6, "vera": 0.75}.items():
        own = {"head": {"target_modules": None}}.get(method, {})
        place = {"experiment": "quickstart", "backbone": "minilm", "recipe": "quick", "own": own}
        record(method=method, task="movie", curve=(0.5, score), **place).save(tmp_path)
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    terminal.show(assemble("quickstart", tmp_path), console)
    rows = {row.split()[0]: row for row in console.file.getvalue().splitlines() if " " in row}
    assert max(map(len, rows.values())) <= width
    assert [rows[name].count("█") for name in ("LoRA", "head", "VeRA")] == ([8, 0, 4] if bars else [0, 0, 0])
    assert "90.00" in rows["LoRA"] and "rows/s" in rows["method"]
