"""The precisions that need a GPU: `pytest -m gpu`."""

import math

import pytest
import torch
from conftest import run_point
from test_contract import METHODS
from test_training import curves

from melora_bench import records

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_training_learns_and_records_the_device(tiny_overrides, precision):
    [path] = run_point([*tiny_overrides, f"precision={precision}", "epochs=8", "lr=0.02"])
    record = records.load(path)
    assert record.env["device"] == torch.cuda.get_device_name()
    assert record.peak_memory_bytes > 0
    assert record.epochs[-1]["train_loss"] < record.epochs[0]["train_loss"]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_on_the_gpu(tiny_overrides, method):
    """In bf16, two seeds side by side where the method packs; nothing is left on the CPU."""
    for path in run_point([*tiny_overrides, f"method={method}", "precision=bf16", "epochs=4", "seeds=[0,1]"]):
        record = records.load(path)
        assert record.env["device"] == torch.cuda.get_device_name()
        assert all(math.isfinite(entry["train_loss"]) for entry in record.epochs)


def test_packed_equals_separate_on_the_gpu(tiny_overrides, tmp_path):
    command = [*tiny_overrides, "method.lora_dropout=0", "backbone.dropout=0", "lr=0.01"]
    packed = run_point([*command, "seeds=[0,1,2]"])
    for seed, path in enumerate(packed):
        [alone] = run_point(
            [*command, f"seeds=[{seed}]", f"results_dir={tmp_path}/alone", f"output_dir={tmp_path}/alone"]
        )
        for ours, theirs in zip(curves(path), curves(alone), strict=True):
            assert ours["train_loss"] == pytest.approx(theirs["train_loss"], abs=1e-4)
