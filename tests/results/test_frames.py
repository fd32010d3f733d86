"""Records and tables as data frames, against records made by hand and the committed ones."""

import doctest
import subprocess
import sys

import pandas as pd
import pytest
from synthetic import record

import melora_bench
from melora_bench.files import ROOT
from melora_bench.results import frames

NUMBERS = (
    "adapter_params seeds best_mean best_sd last_mean last_sd split_mean split_sd published difference rows_per_second"
).split()


def test_the_examples_hold(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert doctest.testmod(frames) == (0, 9)


def test_one_row_per_run_and_epoch(tmp_path):
    for seed, curve in ((0, (0.5, 0.75)), (3, (0.25,))):
        record(seed=seed, curve=curve, lr=0.125).save(tmp_path)
    record(task="cola", curve=(0.5,), experiment="other").save(tmp_path)
    frame = melora_bench.load_records(tmp_path, experiment="mplora_table2").to_frame()
    assert frame[["task", "method", "seed", "epoch", "step", "accuracy"]].values.tolist() == [
        ["mrpc", "lora", 0, 1, 10, 0.5],
        ["mrpc", "lora", 0, 2, 20, 0.75],
        ["mrpc", "lora", 3, 1, 10, 0.25],
    ]
    assert set(frame["config.lr"]) == {0.125} and set(frame["config.method.r"]) == {8}
    both = melora_bench.load_records(tmp_path)
    assert [one.choices["task"] for one in both] == ["mrpc", "mrpc", "cola"]
    assert both.to_frame()["matthews"].tolist()[-1] == 0.5


def test_a_folder_without_records_is_named(tmp_path):
    with pytest.raises(
        ValueError, match=f"{tmp_path}/runs/mine has no records: give the results_dir and the experiment"
    ):
        melora_bench.load_records(tmp_path, experiment="mine")


def test_a_table_is_its_files():
    """The texts are those of results/tables; the frame has the CSV's columns, with numbers as numbers."""
    for name in ("audit", "mplora_table2", "melora_table3"):
        table, stem = melora_bench.Table(name), ROOT / "results" / "tables" / name
        assert table.markdown() == stem.with_suffix(".md").read_text()
        assert table.latex() == stem.with_suffix(".tex").read_text()
        frame, texts = table.to_frame(), pd.read_csv(stem.with_suffix(".csv"), dtype=str, keep_default_na=False)
        assert list(frame) == list(texts)
        for column in frame:
            numbers = pd.api.types.is_numeric_dtype(frame[column])
            expected = pd.to_numeric(texts[column]).astype(frame[column].dtype) if numbers else texts[column]
            assert frame[column].equals(expected)
        assert frame.select_dtypes("number").columns.tolist() == NUMBERS


def test_another_experiments_table(tmp_path):
    record(experiment="mine", curve=(0.5, 0.9)).save(tmp_path)
    frame = melora_bench.Table("mplora_table2", tmp_path, experiment="mine").to_frame()
    [line] = frame[frame.best_mean.notna()].to_dict("records")
    assert (line["row"], line["task"], line["best_mean"], line["published"]) == ("LoRA r=8", "mrpc", 90.0, 87.09)


def test_unknown_names_are_no_attributes():
    with pytest.raises(AttributeError, match="module 'melora_bench' has no attribute 'load_record'"):
        melora_bench.load_record  # noqa: B018
    assert {"Table", "load_records"} <= set(dir(melora_bench))


def test_reading_takes_no_torch():
    code = "import sys, melora_bench\nmelora_bench.Table('audit').to_frame()\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
