"""What a person sees while something takes long: lines a minute where there is no terminal, three that change on
one."""

import io
import logging
import re

import pytest
from conftest import run_point
from rich.console import Console

from melora_bench.training import progress
from melora_bench.training.progress import Grid, Progress, clock


@pytest.fixture
def at(monkeypatch):
    """at(0, 30, ..): the times that are looked at, one after another."""

    def times(*seconds: float) -> None:
        left = iter(map(float, seconds))
        monkeypatch.setattr(progress.time, "perf_counter", lambda: next(left))

    return times


@pytest.fixture
def terminal(monkeypatch) -> Console:
    """A terminal of 80 columns that keeps what is written to it."""
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(progress, "console", console)
    return console


def test_lines_tell_what_is_done_and_the_time_left(at, caplog):
    caplog.set_level("INFO")
    at(0, 30, 70, 80, 90)
    bar = Progress("MMLU", 100, lambda left: f"{bar.done}/100 questions, in {bar.note}, {left}")
    with bar:
        bar.note = "anatomy"
        for count in (10, 10, 10, 70):
            bar.advance(count)
    assert caplog.messages == [
        "MMLU  20/100 questions, in anatomy, 4:40 left",  # none at 30 s; 70 s for 20 questions; none at 80 s
        "MMLU  100/100 questions, in anatomy, 0:00 left",
    ]


def test_a_line_of_its_own_puts_the_next_minute_off(at, caplog):
    caplog.set_level("INFO")
    at(0, 50, 70, 120)
    bar = Progress("mrpc lora", 100, lambda left: left, done=40)
    bar.say("epoch 1")
    bar.update(50)  # at 70 s
    bar.update(70)  # at 120 s: 30 of the 60 that were left
    assert caplog.messages == ["epoch 1", "mrpc lora  2:00 left"]


def test_a_terminal_of_80_columns_shows_place_title_and_time_left(at, terminal, monkeypatch, caplog):
    caplog.set_level("INFO")
    at(0, 60, 60, 60)
    monkeypatch.setattr(progress, "GRID", Grid(total=20, number=3, seconds=[120.0, 60.0]))
    bar = Progress("mrpc melora n=4 r=2", 100, lambda left: f"step {bar.done}/100  {'0' * 80}  {left}")
    bar.update(50)
    terminal.print(bar._shown())
    place, title, line = terminal.file.getvalue().splitlines()
    assert place == "point 3 of 20, about 29:20 left for all"  # 60 s of this point, and 17 of 100 s
    assert title.startswith("mrpc melora n=4 r=2  ━") and line.startswith("step 50/100") and line.endswith("…")
    assert caplog.messages == []


def test_a_log_line_on_a_terminal_is_one_line_with_its_time(terminal, monkeypatch):
    before, level = logging.root.handlers[:], logging.root.level
    try:
        progress.setup_logging()
        logging.getLogger("melora_bench.training.run").info("done  %s", "[a]" * 60)
    finally:
        logging.root.handlers[:] = before
        logging.root.setLevel(level)
    [line] = terminal.file.getvalue().splitlines()
    assert line[2] == line[5] == ":" and line[8:] == f"  done  {'[a]' * 60}"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (280, "4:40"), (3880, "1:04:40")])
def test_a_time_as_a_clock_has_it(seconds, text):
    assert clock(seconds) == text


def test_a_run_on_a_terminal_shows_its_label_step_and_score(tiny_overrides, terminal):
    run_point([*tiny_overrides, "method=melora", "method.n=4", "seeds=[0,1]"])
    shown = terminal.file.getvalue()
    assert "sst2 melora n=4  data and weights are read" in shown
    assert re.search(r"epoch \S+/2  step \d+/10  \d+ rows/s  accuracy 0\.\d{4} ± 0\.\d{4}  \d:\d\d left", shown), shown[
        -900:
    ]
