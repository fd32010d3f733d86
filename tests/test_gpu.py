"""What only a GPU can show: `pytest -m gpu`. float32 is float32 here: TF32 is off, which is torch's default."""

import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA starts: deterministic algorithms ask for it

import pytest
import torch
from conftest import interrupt, run_point
from helpers import NO_DROPOUT, adapters, curves, equal, poison_replica_1, without_dropout
from method_helpers import METHODS

from melora_bench.methods.lora import LoRA
from melora_bench.records import records
from melora_bench.training.run import RunError
from melora_bench.training.trainer import Trainer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

# A stored number is off by at most this share of itself: bf16 keeps 8 bits, fp16 11.
ROUNDOFF = {"bf16": 2.0**-8, "fp16": 2.0**-11}


def places(folder) -> list[str]:
    return [f"results_dir={folder}", f"output_dir={folder}"]


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_training_learns_and_records_the_device(tiny_overrides, precision):
    [path] = run_point([*tiny_overrides, f"precision={precision}", "epochs=8", "lr=0.02"])
    record = records.load(path)
    assert record.env["device"] == torch.cuda.get_device_name()
    assert record.peak_memory_bytes > 0
    assert record.epochs[-1]["train_loss"] < record.epochs[0]["train_loss"]


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_follows_float32(tiny_overrides, tmp_path, method):
    """Two seeds side by side. Between embeddings and loss stand two layers of 8 rounded products and the head's two: 18
    roundings of either sign move logits of size 1 at most by about sqrt(18) times one, and the loss no more than
    that."""
    command = [*tiny_overrides, *without_dropout(method), f"method={method}", "lr=0.01", "seeds=[0,1]", "epochs=4"]
    full = run_point([*command, *places(tmp_path / "full")])
    for precision, roundoff in ROUNDOFF.items():
        half = run_point([*command, f"precision={precision}", *places(tmp_path / precision)])
        for one, two in zip(full, half, strict=True):
            assert records.load(two).env["device"] == torch.cuda.get_device_name()
            for a, b in zip(curves(one), curves(two), strict=True):
                assert a["train_loss"] == pytest.approx(b["train_loss"], abs=18**0.5 * roundoff), precision


@pytest.mark.parametrize("method", METHODS)
def test_packed_equals_separate_on_the_gpu(tiny_overrides, tmp_path, method):
    """Other shapes may mean other kernels, which add in another order; AdamW's first steps magnify that."""
    assert not torch.backends.cuda.matmul.allow_tf32
    command = [*tiny_overrides, *without_dropout(method), f"method={method}", "lr=0.01", "epochs=4"]
    packed = run_point([*command, "seeds=[0,1,2]"])
    for seed, path in enumerate(packed):
        [alone] = run_point([*command, f"seeds=[{seed}]", *places(tmp_path / "alone")])
        for ours, theirs in zip(curves(path), curves(alone), strict=True):
            assert ours["train_loss"] == pytest.approx(theirs["train_loss"], abs=1e-4)


@pytest.mark.parametrize("pooling", ["null", "mean"])
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_streams_equal_padded_rows_on_the_gpu(tiny_overrides, tmp_path, precision, pooling):
    """Attention by torch's kernels for rows of any length; the bound is that of half precision against float32,
    twice."""
    command = [
        *tiny_overrides,
        *NO_DROPOUT,
        f"precision={precision}",
        f"backbone.pooling={pooling}",
        "lr=0.01",
        "seeds=[0,1]",
    ]
    padded = run_point([*command, "layout=padded", *places(tmp_path / "padded")])
    streams = run_point([*command, "layout=streams"])
    bound = 2 * 18**0.5 * ROUNDOFF.get(precision, 2.0**-24) + 1e-6
    for one, two in zip(padded, streams, strict=True):
        for a, b in zip(curves(one), curves(two), strict=True):
            assert a["train_loss"] == pytest.approx(b["train_loss"], abs=bound)


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_resumed_equals_unbroken_on_the_gpu(tiny_overrides, tmp_path, deterministic, precision):
    """Dropout on, to the last bit."""
    command = [*tiny_overrides, "method=melora", "seeds=[0,1]", "epochs=3", f"precision={precision}"]
    unbroken = run_point([*command, *places(tmp_path / "whole")])
    interrupt(command)
    resumed = run_point(command)
    assert records.load(resumed[0]).resumed_at == [1]
    assert [curves(path) for path in resumed] == [curves(path) for path in unbroken]
    whole, again = adapters(tmp_path / "whole"), adapters(tmp_path / "outputs")
    assert all(equal(whole[seed], again[seed]) for seed in (0, 1))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_one_replica_goes_bad_on_the_gpu(tiny_overrides, tmp_path, monkeypatch, deterministic, precision):
    """The others finish bit-equal to a run where it did not."""
    command = [*tiny_overrides, "seeds=[0,1,2]", f"precision={precision}"]
    good = run_point([*command, *places(tmp_path / "good")])
    poison_replica_1(monkeypatch)
    with pytest.raises(RunError, match=r"seed 1 stopped at step 6"):
        run_point(command)
    written = sorted((tmp_path / "results").rglob("*.json"))
    assert [curves(path) for path in written] == [curves(good[0]), curves(good[2])]
    whole, partly = adapters(tmp_path / "good"), adapters(tmp_path / "outputs")
    assert all(equal(whole[seed], partly[seed]) for seed in (0, 2))


def test_an_overflow_skips_the_step_of_all(tiny_overrides, tmp_path, monkeypatch):
    """fp16: the scaled gradients of one replica overflow once; no replica takes that step, and all go on."""
    command = [*tiny_overrides, *NO_DROPOUT, "seeds=[0,1,2]", "precision=fp16", "epochs=4"]
    taken: list[int] = []
    real_step, real_loss = LoRA.after_optimizer_step, Trainer._loss

    def counts(self, step, optimizer):
        taken.append(step)
        real_step(self, step, optimizer)

    monkeypatch.setattr(LoRA, "after_optimizer_step", counts)
    run_point([*command, *places(tmp_path / "good")])
    good, calls = taken.copy(), []
    taken.clear()

    def overflows(self, batch):
        calls.append(None)
        loss = real_loss(self, batch)
        return loss * torch.tensor([1.0, 1e6, 1.0], device=loss.device) if len(calls) == 9 else loss

    monkeypatch.setattr(Trainer, "_loss", overflows)
    paths = run_point(command)
    assert set(good) - set(taken) == {8} and len(calls) == 20
    assert [records.load(path).seed for path in paths] == [0, 1, 2]
    assert all(records.load(path).epochs[-1]["train_loss"] < 1 for path in paths)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_compiled_run_ends_near_the_plain_one(tiny_overrides, tmp_path, precision):
    command = [*tiny_overrides, *NO_DROPOUT, "method=melora", f"precision={precision}", "lr=0.01"]
    [plain] = run_point(command)
    [compiled] = run_point([*command, *places(tmp_path / "compiled"), "compile=true"])
    assert records.load(compiled).env["compile"] is True
    bound = 18**0.5 * ROUNDOFF.get(precision, 2.0**-24) + 1e-5  # fused code rounds elsewhere
    for a, b in zip(curves(plain), curves(compiled), strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], abs=bound)
