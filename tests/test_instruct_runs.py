"""Instruction tuning runs: a causal language model trains, resumes, packs, keeps its best, and fits a device or says
not."""

import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import Interrupted, run_point
from helpers import NO_DROPOUT, TRAIN, adapters, curves, equal
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaForCausalLM

from melora_bench.adapters.files import stored_account
from melora_bench.external.fields import build
from melora_bench.files import sha256_file
from melora_bench.grids.plan import Size, plan
from melora_bench.grids.tables import Row, Table
from melora_bench.methods.lora import LoRALayer
from melora_bench.records import records
from melora_bench.tasks.instruct import InstructTask
from melora_bench.training.build import load_task
from melora_bench.training.run import RunError
from melora_bench.training.sharding import shard_backbone
from melora_bench.training.trainer import Trainer

TIGHT = ["method=adalora", "method.delta_t=1"]  # pruned after every step


def losses(path) -> list[float]:
    return [entry["metrics"]["loss"] for entry in records.load(path).epochs]


def test_the_validation_loss_falls_and_the_record_says_of_what(alpaca_overrides, tiny_alpaca, tmp_path):
    """q_proj is 32 x 32, v_proj 16 x 32, in two layers: r = 8 makes 2 * 8 * (64 + 48) parameters, and no head."""
    [path] = run_point([*alpaca_overrides, "epochs=6", "lr=0.05"])
    record = records.load(path)
    found = losses(path)
    assert found == sorted(found, reverse=True) and found[0] > 5.9 and found[-1] < found[0] - 0.05
    assert record.metric == "loss" and set(record.epochs[0]["metrics"]) == {"loss"}
    assert [list(half) for half in record.epochs[0]["halves"]] == [["loss"], ["loss"]]
    assert record.params == {"total": 1792, "adapter": 1792, "head": 0}
    assert record.choices == {
        "method": "lora",
        "task": "alpaca",
        "backbone": "smollm2",
        "data": "local",
        "recipe": "quick",
    }
    shared = {"sha256": [sha256_file(tiny_alpaca)], "of": 60, "file": "rows.json"}
    assert record.data == {"train": {"rows": 54, **shared}, "validation": {"rows": 6, **shared}}
    assert record.run_id.startswith("adhoc/alpaca/lora-") and record.epochs[-1]["step"] == 24
    [file] = (tmp_path / "outputs").rglob("last.safetensors")
    assert len(load_file(file)) == 8


def test_the_best_is_the_lowest_loss(alpaca_overrides, monkeypatch, tmp_path):
    """The first of two equal ones."""
    scores = iter([3.0, 1.0, 2.0, 1.0])

    def score(self, outputs, half=None):
        return {"loss": next(scores) if half is None else 9.0}

    monkeypatch.setattr(InstructTask, "score", score)
    [path] = run_point([*alpaca_overrides, "epochs=4"])
    assert losses(path) == [3.0, 1.0, 2.0, 1.0] and records.best_epoch(records.load(path))["epoch"] == 2
    for kind, epoch in (("best", 2), ("last", 4)):
        [file] = (tmp_path / "outputs").rglob(f"{kind}.safetensors")
        assert stored_account(file)["epoch"] == epoch


@pytest.mark.slow
@pytest.mark.parametrize("method", [["method=melora"], TIGHT], ids=["melora", "adalora"])
def test_resumed_in_the_middle_of_an_epoch_equals_unbroken(method, alpaca_overrides, tmp_path, monkeypatch):
    """Dropout on, 4 steps an epoch, evaluated every 3: dies in step 5 and goes on from step 3, in the first epoch."""
    command = [*alpaca_overrides, *method, "seeds=[0,1]", "eval_steps=3", "epochs=3", "lr=0.02", "warmup_steps=2"]
    unbroken = run_point([*command, f"results_dir={tmp_path}/whole", f"output_dir={tmp_path}/whole"])
    real = Trainer.train_round

    def dies(self, on_step):
        real(self, lambda step, losses: (_ for _ in ()).throw(Interrupted()) if step == 5 else on_step(step, losses))

    monkeypatch.setattr(Trainer, "train_round", dies)
    with pytest.raises(RunError, match="Interrupted"):
        run_point(command)
    monkeypatch.setattr(Trainer, "train_round", real)
    resumed = run_point(command)
    assert records.load(resumed[0]).resumed_at == [0.75]
    assert [entry["step"] for entry in records.load(resumed[0]).epochs] == [3, 6, 9, 12]
    assert [curves(path) for path in resumed] == [curves(path) for path in unbroken]
    for kind in ("last", "best"):
        whole, again = adapters(tmp_path / "whole", kind), adapters(tmp_path / "outputs", kind)
        assert all(equal(whole[seed], again[seed]) for seed in (0, 1))


@pytest.mark.slow
@pytest.mark.parametrize("method", [["method=lora"], ["method=melora"], TIGHT], ids=["lora", "melora", "adalora"])
def test_two_seeds_side_by_side_equal_each_alone(method, alpaca_overrides, tmp_path):
    """Rows of other lengths beside a replica's own change its padding and its losses' weights, not its numbers."""
    command = [*alpaca_overrides, *NO_DROPOUT, *method, "epochs=4", "lr=0.02"]
    packed = run_point([*command, "seeds=[0,1]"])
    together = adapters(tmp_path / "outputs")
    for seed, path in enumerate(packed):
        places = [f"results_dir={tmp_path}/alone", f"output_dir={tmp_path}/alone"]
        [alone] = run_point([*command, f"seeds=[{seed}]", *places])
        for ours, theirs in zip(curves(path), curves(alone), strict=True):
            assert ours["train_loss"] == pytest.approx(theirs["train_loss"], abs=2e-6)
            assert ours["metrics"]["loss"] == pytest.approx(theirs["metrics"]["loss"], abs=2e-6)
        separate = adapters(tmp_path / "alone")[seed]
        assert all(torch.allclose(together[seed][key], separate[key], atol=2e-5) for key in separate)
    key = min(key for key in together[0] if not key.endswith("E"))
    assert not torch.allclose(together[0][key], together[1][key], atol=1e-3)


def test_gradient_checkpointing_computes_again_and_changes_nothing(alpaca_overrides, tmp_path, monkeypatch):
    """Dropout on: the second computation draws what the first drew. 4 layers, 8 steps, 2 evaluations of one batch, and
    3 batches of the look before training."""
    calls, real = [], LoRALayer.update
    monkeypatch.setattr(LoRALayer, "update", lambda self, x: calls.append(self.training) or real(self, x))
    [kept] = run_point(alpaca_overrides)
    assert (sum(calls), len(calls)) == (4 * 8, 4 * (8 + 2 + 3))
    calls.clear()
    places = [f"results_dir={tmp_path}/again", f"output_dir={tmp_path}/again"]
    [again] = run_point([*alpaca_overrides, *places, "backbone.gradient_checkpointing=true"])
    assert (sum(calls), len(calls)) == (2 * 4 * 8, 4 * (2 * 8 + 2 + 3))
    assert curves(kept) == curves(again)
    assert equal(adapters(tmp_path / "outputs")[0], adapters(tmp_path / "again")[0])


def test_out_of_memory_is_one_line_and_keeps_the_checkpoint(alpaca_overrides, tmp_path, monkeypatch):
    """In the second epoch; with memory again the run goes on after the first."""
    command, real = [*alpaca_overrides, "seeds=[0]"], InstructTask.loss
    steps = iter(range(100))

    def loss(self, model, batch, replicas):
        if next(steps) == 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(self, model, batch, replicas)

    monkeypatch.setattr(InstructTask, "loss", loss)
    line = (
        "error: the device is out of memory at batch_size=16, eval_batch_size=64: in training raise accumulation, in "
        "evaluation lower eval_batch_size, or give fewer seeds; "
        "the next start goes on from the last evaluation's checkpoint, if there was one"
    )
    with pytest.raises(RunError) as caught:
        run_point(command)
    assert str(caught.value) == line
    assert len(list((tmp_path / "outputs").rglob("checkpoint.pt"))) == 1
    [note] = (tmp_path / "outputs").rglob("error.txt")
    assert f"error: {note.read_text().splitlines()[0]}" == line
    monkeypatch.setattr(InstructTask, "loss", real)
    assert [records.load(path).resumed_at for path in run_point(command)] == [[1]]
    assert not list((tmp_path / "outputs").rglob("checkpoint.pt")) + list((tmp_path / "outputs").rglob("error.txt"))


@pytest.mark.slow
def test_seeds_that_do_not_fit_side_by_side_are_trained_in_waves(alpaca_overrides, tmp_path, monkeypatch, caplog):
    """Five seeds on a device that holds two; the whole pack fails in its second epoch, when it has a checkpoint. Killed
    in the wave of seed 2, it goes on with that wave."""
    real, trained = InstructTask.loss, []

    def loss(self, model, batch, replicas):
        trained.append(replicas)
        if replicas == 1 and trained.count(1) == 6:
            raise KeyboardInterrupt
        if replicas > 2 and trained.count(replicas) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(self, model, batch, replicas)

    monkeypatch.setattr(InstructTask, "loss", loss)
    command = [*alpaca_overrides, "seeds=[0,1,2,3,4]", "method.lora_dropout=0"]
    with caplog.at_level("WARNING"), pytest.raises(KeyboardInterrupt):
        run_point(command)
    run_point(command)
    found = [records.load(path) for path in sorted((tmp_path / "results").rglob("*.json"))]
    assert [(record.seed, record.packed_with, record.resumed_at) for record in found] == [
        (0, [1], []),
        (1, [0], []),
        (2, [], [1]),
        (3, [4], []),
        (4, [3], []),
    ]
    waves = [line.split("memory: ")[1] for line in caplog.messages if line.startswith("waves")]
    assert waves == ["[0, 1, 2] then [3, 4]", "[0, 1] then [2] then [3, 4]"]
    assert not list((tmp_path / "outputs").rglob("checkpoint.pt"))
    monkeypatch.setattr(InstructTask, "loss", real)
    places = [f"results_dir={tmp_path}/whole", f"output_dir={tmp_path}/whole"]
    whole = [records.load(path) for path in run_point([*command, *places])]
    for one, other in zip(found, whole, strict=True):
        assert one.epochs[-1]["metrics"] == pytest.approx(other.epochs[-1]["metrics"], rel=1e-4)


def test_a_pack_that_once_fitted_keeps_its_checkpoint(alpaca_overrides, tmp_path, monkeypatch):
    """Killed after an epoch and started again while something else fills the device: nothing is thrown away."""
    real, command = InstructTask.loss, [*alpaca_overrides, "seeds=[0,1]"]
    steps = iter(range(100))

    def loss(self, model, batch, replicas):
        step = next(steps)
        if step == 5:
            raise KeyboardInterrupt
        if step == 6:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(self, model, batch, replicas)

    monkeypatch.setattr(InstructTask, "loss", loss)
    with pytest.raises(KeyboardInterrupt):
        run_point(command)
    with pytest.raises(RunError, match="out of memory"):
        run_point(command)
    assert [records.load(path).resumed_at for path in run_point(command)] == [[1], [1]]


def test_full_fine_tuning_trains_every_tensor(alpaca_overrides, tiny_llama, tmp_path):
    [path] = run_point([*alpaca_overrides, "method=full", "lr=0.01"])
    record, before = records.load(path), LlamaForCausalLM.from_pretrained(tiny_llama)
    [file] = (tmp_path / "outputs").rglob("last.safetensors")
    after = load_file(file)
    assert after.keys() == dict(before.named_parameters()).keys()
    assert all(not torch.equal(after[name], value) for name, value in before.named_parameters())
    assert record.params["total"] == before.num_parameters() and losses(path)[-1] < 5


@pytest.mark.slow
def test_bf16_weights_train_under_bf16(alpaca_overrides):
    """And end near the float32 run."""
    [full] = run_point([*alpaca_overrides, "lr=0.05"])
    [half] = run_point([*alpaca_overrides, "lr=0.05", "precision=bf16", "backbone.dtype=bfloat16"])
    assert losses(half)[-1] < losses(half)[0] - 0.01
    assert losses(half)[-1] == pytest.approx(losses(full)[-1], abs=5e-3) and losses(half) != losses(full)


def test_rows_per_second_count_rows_not_evaluations(alpaca_overrides):
    """Seven steps of four an epoch, evaluated after each, are 1.75 epochs of 54 rows."""
    [path] = run_point([*alpaca_overrides, "eval_steps=1", "max_steps=7"])
    record = records.load(path)
    seconds = sum(entry["train_seconds"] for entry in record.epochs)
    assert len(record.epochs) == 7
    assert record.rows_per_second * seconds == pytest.approx(1.75 * 54, rel=1e-3)


@pytest.mark.slow
def test_the_plan_counts_what_a_run_by_steps_does(alpaca_overrides, monkeypatch):
    """Six steps are one and a half epochs of four; evaluated after four of them and at the end."""
    grid = Table(title="", experiment="audit", tasks=["alpaca"], rows=[Row(label="LoRA", settings={"method": "lora"})])
    monkeypatch.setattr("melora_bench.grids.plan.load_table", lambda name: grid)
    kept = [item for item in alpaca_overrides if not item.startswith("task=")]
    limits = ["max_train_rows=null", "max_eval_rows=null", "seeds=[0,1]", "max_steps=6", "eval_steps=4"]
    [cost] = plan("audit", [*kept, *limits])
    assert (cost.steps, cost.missing, cost.problem) == (6, [0, 1], "") and cost.hours > 0
    place = f"experiment={cost.point.config.experiment}"  # a trial's, as the steps are not the table's
    found = [records.load(path) for path in run_point(["table=audit", *cost.job, place])]
    assert [[entry["step"] for entry in record.epochs] for record in found] == [[4, 6]] * 2
    seconds = [sum(entry["train_seconds"] for entry in record.epochs) for record in found]
    trained = [record.tokens_per_second * second for record, second in zip(found, seconds, strict=True)]
    assert cost.tokens == pytest.approx(sum(trained), rel=1e-3)
    [epochs, steps] = [plan("audit", [*kept, *limits[:2], "seeds=[2]", *more])[0] for more in ([], limits[3:])]
    assert (epochs.steps, steps.steps) == (8, 6) and epochs.tokens == pytest.approx(2 / 1.5 * steps.tokens, abs=1)
    size = Size.of(load_task(cost.point.config, build(cost.point.config.backbone, "backbone"))[0])
    assert size.rows == 54 and epochs.evaluated == steps.evaluated == 2 * size.evaluated  # after 4 and 8, 4 and 6 steps


@pytest.mark.slow
def test_two_processes_equal_one(alpaca_overrides, tiny_llama, tmp_path):
    """Two processes, with a whole backbone or half a one each; two seeds, a short last step: the losses of one
    process."""
    methods = ["delta_lora", "lora_fa", "melora", "vera"]  # two keep frozen tensors of their own, which stay whole
    command = [*alpaca_overrides, *NO_DROPOUT, "seeds=[0,1]", "batch_size=20", "lr=0.02"]
    one = [path for method in methods for path in run_point([*command, f"method={method}"])]
    numbers = sum(value.numel() for value in LlamaForCausalLM.from_pretrained(tiny_llama).parameters())
    half = f"{numbers // 2:,} of the backbone's {numbers:,} frozen numbers in each of 2 processes"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", TRAIN[1], "-m"]
    for options in [[], ["shard=true", "backbone.gradient_checkpointing=true"]]:
        folder = tmp_path / f"two{len(options)}"
        places = [f"results_dir={folder}", f"output_dir={folder}", f"method={','.join(methods)}"]
        done = subprocess.run(
            [*torchrun, *command, *options, *places],
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr.count(half) == (len(methods) if options else 0)
        two = sorted((folder / "runs").rglob("*.json"))
        for ours, theirs in zip(one, two, strict=True):
            assert records.load(theirs).env["processes"] == 2
            assert records.load(ours).choices["method"] == records.load(theirs).choices["method"]
            for a, b in zip(curves(ours), curves(theirs), strict=True):
                assert a["train_loss"] == pytest.approx(b["train_loss"], abs=2e-6)
                assert a["metrics"]["loss"] == pytest.approx(b["metrics"]["loss"], abs=2e-6)


@pytest.mark.parametrize(
    ("environment", "overrides", "message"),
    [
        (
            {},
            ["shard=true"],
            "shard=true cuts the backbone into one part per process, and there is one: launch with acc",
        ),
        ({}, ["shard=true", "compile=true"], "shard=true and compile=true do not go together"),
        ({"ACCELERATE_USE_FSDP": "true"}, [], "ACCELERATE_USE_FSDP=true makes accelerate wrap .* give shard=true"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, [], "ACCELERATE_DYNAMO_BACKEND=INDUCTOR .* give compile=true"),
    ],
)
def test_sharding_is_refused_where_it_cannot_be(alpaca_overrides, monkeypatch, environment, overrides, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError, match=message):
        run_point([*alpaca_overrides, *overrides])


def test_a_backbone_that_cannot_be_cut_is_refused(tiny_llama):
    model, two = LlamaForCausalLM.from_pretrained(tiny_llama).requires_grad_(False), SimpleNamespace(num_processes=2)
    model.model.layers[1].self_attn.q_proj.weight = nn.Parameter(
        torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False
    )
    with pytest.raises(ValueError, match=r"model\.layers\.1\.self_attn\.q_proj\.weight is packed \(torch\.uint8\)"):
        shard_backbone(model, two)
    model._no_split_modules = None
    with pytest.raises(ValueError, match="LlamaForCausalLM does not say which of its modules are layers"):
        shard_backbone(model, two)
    whole = LlamaForCausalLM.from_pretrained(tiny_llama)
    with pytest.raises(ValueError, match="shard=true cuts frozen weights, and this method trains them all"):
        shard_backbone(whole, two)


def test_4_bit_weights_are_trained_on(alpaca_overrides, tiny_llama, tmp_path):
    """QLoRA: the frozen linear layers are packed, the adapters learn beside them; full fine-tuning has nothing to
    train.

    One epoch: on a CPU, bitsandbytes 0.50 repacks weights in evaluation and gives no gradients from then on.
    """
    pytest.importorskip("bitsandbytes", reason="4-bit weights need bitsandbytes (extra qlora)")
    folder = shutil.copytree(tiny_llama, tmp_path / "wide")  # blocks of 64 numbers are packed
    config = LlamaForCausalLM.from_pretrained(tiny_llama).config
    config.update({"hidden_size": 128, "intermediate_size": 256, "head_dim": 32})
    LlamaForCausalLM(config).save_pretrained(folder)
    wide = [*alpaca_overrides, f"backbone.path={folder}", "precision=bf16", "epochs=1", "method=melora", "method.n=2"]
    paths = run_point([*wide, "backbone.quantization=nf4"]) + run_point(wide)
    packed, exact = (curves(path)[0] for path in paths)
    assert packed["train_loss"] != exact["train_loss"]
    assert packed["train_loss"] == pytest.approx(exact["train_loss"], rel=0.05)
    with pytest.raises(RunError, match=r"needs backbone\.dtype=float32 and no quantization"):
        run_point([*wide[:-2], "backbone.quantization=nf4", "method=full"])
