"""The loop: packed equals separate, resumed equals unbroken, two processes equal one, failures stay where they are."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
import transformers
from conftest import Interrupted, interrupt, run_point
from helpers import NO_DROPOUT, TRAIN, adapters, curves, equal, poison_replica_1, without_dropout
from method_helpers import METHODS, examples_first
from safetensors.torch import load_file

from melora_bench.adapters.files import stored_account, trainable
from melora_bench.methods.lora import LoRA
from melora_bench.records import records
from melora_bench.training.build import build
from melora_bench.training.configs import compose_run
from melora_bench.training.points import Point
from melora_bench.training.run import RunError
from melora_bench.training.trainer import Trainer


@pytest.mark.parametrize("method", examples_first(METHODS))
def test_packed_equals_separate(tiny_overrides, tmp_path, method):
    """Three seeds side by side give what each gives alone, to rounding, with dropout 0."""
    common = [*tiny_overrides, *without_dropout(method), f"method={method}", "lr=0.01", "epochs=4"]
    packed = run_point([*common, "seeds=[0,1,2]"])
    together = adapters(tmp_path / "outputs")
    for seed, path in enumerate(packed):
        places = [f"results_dir={tmp_path}/alone", f"output_dir={tmp_path}/alone"]
        [alone] = run_point([*common, f"seeds=[{seed}]", *places])
        for ours, theirs in zip(curves(path), curves(alone), strict=True):
            assert ours["train_loss"] == pytest.approx(theirs["train_loss"], abs=2e-6)
            assert ours["metrics"] == theirs["metrics"]
        separate = adapters(tmp_path / "alone")[seed]
        assert all(torch.allclose(together[seed][key], separate[key], atol=1e-5) for key in separate)
    assert not torch.allclose(together[0]["classifier.dense.weight"], together[1]["classifier.dense.weight"], atol=1e-3)


@pytest.mark.slow
def test_same_command_twice_gives_equal_records(tiny_overrides, tmp_path):
    """Dropout on: two runs of one command agree in every number but the times; a third is skipped."""
    command = [*tiny_overrides, "seeds=[0,1]"]
    first = run_point(command)
    second = run_point([*command, f"results_dir={tmp_path}/again", f"output_dir={tmp_path}/again"])
    assert [curves(path) for path in first] == [curves(path) for path in second]
    assert curves(first[0])[-1]["train_loss"] != curves(first[1])[-1]["train_loss"]
    assert run_point(command) == []


def test_only_the_missing_seeds_run(tiny_overrides):
    [first] = run_point([*tiny_overrides, "seeds=[1]"])
    before = first.read_bytes()
    rest = run_point([*tiny_overrides, "seeds=[0,1,2]"])
    assert [records.load(path).seed for path in rest] == [0, 2]
    assert records.load(rest[0]).packed_with == [2]
    assert first.read_bytes() == before


TIGHT = "adalora method.delta_t=1"  # pruned after every step: before, at and after the interruption


@pytest.mark.parametrize("method", [*examples_first(METHODS), TIGHT])
def test_resumed_equals_unbroken(tiny_overrides, tmp_path, monkeypatch, method):
    """Dropout on: a run that dies in its third epoch and is started again ends bit-equal to an unbroken one."""
    command = [*tiny_overrides, *f"method={method}".split(), "seeds=[0,1]", "epochs=4"]
    unbroken = run_point([*command, f"results_dir={tmp_path}/whole", f"output_dir={tmp_path}/whole"])
    real = Trainer.train_round

    def dies(self, on_step):
        if self.epoch == 2:
            real(self, lambda step, losses: (_ for _ in ()).throw(Interrupted()) if step == 12 else None)
        real(self, on_step)

    monkeypatch.setattr(Trainer, "train_round", dies)
    with pytest.raises(RunError, match="Interrupted"):
        run_point(command)
    assert not list((tmp_path / "results").rglob("*.json"))
    monkeypatch.setattr(Trainer, "train_round", real)
    resumed = run_point(command)
    assert [curves(path) for path in resumed] == [curves(path) for path in unbroken]
    for kind in ("last", "best"):
        whole, again = adapters(tmp_path / "whole", kind), adapters(tmp_path / "outputs", kind)
        assert all(equal(whole[seed], again[seed]) for seed in (0, 1))
    assert records.load(resumed[0]).resumed_at == [2]
    assert not list((tmp_path / "outputs").rglob("checkpoint.pt"))


@pytest.mark.slow
def test_kill_9_in_the_middle_of_an_epoch(tiny_overrides, tmp_path):
    """A process killed at a random moment after its first checkpoint leaves nothing half-written, and resumes
    bit-equal."""
    command = [*tiny_overrides, "seeds=[0,1]", "epochs=30"]
    unbroken = run_point([*command, f"results_dir={tmp_path}/whole", f"output_dir={tmp_path}/whole"])
    process = subprocess.Popen([*TRAIN, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list((tmp_path / "outputs").rglob("checkpoint.pt")):
        assert process.poll() is None
        time.sleep(0.01)
    delay = random.random()
    print(f"killed {delay} s after its first checkpoint")
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not list((tmp_path / "results").rglob("*.json"))
    resumed = run_point(command)
    assert records.load(resumed[0]).resumed_at[0] >= 1
    assert [curves(path) for path in resumed] == [curves(path) for path in unbroken]


@pytest.mark.slow
@pytest.mark.parametrize(
    "dropout",
    [pytest.param(NO_DROPOUT, id="adapters"), pytest.param(NO_DROPOUT[1:], id="others")],
)
def test_two_processes_equal_one(tiny_overrides, tmp_path, dropout):
    """torchrun with two processes sweeps every method as one process does, short last batches included."""
    methods = [name for name in METHODS if without_dropout(name) == dropout]
    command = [*tiny_overrides, *dropout, "seeds=[0,1]", "batch_size=20", "epochs=4", "lr=0.01"]
    one = sorted(path for name in methods for path in run_point([*command, f"method={name}"]))
    places = [f"results_dir={tmp_path}/two", f"output_dir={tmp_path}/two"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", TRAIN[1], "-m"]
    done = subprocess.run(
        [*torchrun, *command, *places, f"method={','.join(methods)}"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    two = sorted((tmp_path / "two").rglob("*.json"))
    assert [records.load(path).env["processes"] for path in two] == [2] * 2 * len(methods)
    for ours, theirs in zip(one, two, strict=True):
        assert ours.name == theirs.name
        for a, b in zip(curves(ours), curves(theirs), strict=True):
            assert a["train_loss"] == pytest.approx(b["train_loss"], abs=2e-6)
            assert a["penalty"] == pytest.approx(b["penalty"], rel=1e-3, abs=1e-9)
            assert a["metrics"] == b["metrics"]


@pytest.mark.parametrize("method", examples_first(METHODS))
def test_accumulation_changes_nothing_but_memory(tiny_overrides, tmp_path, method):
    """One batch in four micro-batches, a short last batch included, trains as the whole batch does."""
    command = [
        *tiny_overrides,
        *without_dropout(method),
        f"method={method}",
        "seeds=[0,1]",
        "epochs=4",
        "batch_size=20",
    ]
    whole = run_point(command)
    parts = run_point([*command, "accumulation=4", f"results_dir={tmp_path}/parts", f"output_dir={tmp_path}/parts"])
    for ours, theirs in zip(whole, parts, strict=True):
        for a, b in zip(curves(ours), curves(theirs), strict=True):
            assert a["train_loss"] == pytest.approx(b["train_loss"], abs=2e-6)
            assert a["penalty"] == pytest.approx(b["penalty"], rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_hook_order_and_counts(tiny_overrides, monkeypatch, accumulation):
    """attach and before_training once; per step: before_forward and penalty for each micro-batch, then
    after_optimizer_step, gradients there."""
    calls = []

    def spy(name):
        real = getattr(LoRA, name)

        def hook(self, *arguments):
            if name == "after_optimizer_step":
                assert all(layer.B.grad.abs().sum() > 0 for layer in self.layers.values())
            calls.append((name, *arguments[:1]) if name in ("before_forward", "after_optimizer_step") else (name,))
            return real(self, *arguments)

        monkeypatch.setattr(LoRA, name, hook)

    for name in (
        "attach",
        "before_training",
        "before_forward",
        "penalty",
        "after_optimizer_step",
        "report",
        "state_dict",
    ):
        spy(name)
    run_point([*tiny_overrides, "epochs=1", "batch_size=24", f"accumulation={accumulation}"])
    expected = [("attach",), ("before_training",)]
    for step in range(3):
        expected += [("before_forward", step), ("penalty",)] * accumulation + [("after_optimizer_step", step)]
    assert calls == [*expected, ("report",), ("state_dict",)]


def seen_before_training(monkeypatch, *overrides: str) -> list[tuple]:
    """What `before_training` got in a run: per step the token ids, whether the model was in training mode, and the
    losses."""
    seen = []

    def look(self, steps, loss):
        layer = next(iter(self.layers.values()))
        for batch in steps:
            values = loss(batch)
            values.sum().backward()
            seen.append((sorted(batch["input_ids"].flatten().tolist()), layer.training, values.detach()))
        assert layer.B.grad.abs().sum() > 0

    monkeypatch.setattr(LoRA, "before_training", look)
    run_point(list(overrides))
    return seen


@pytest.mark.parametrize("layout", ["padded", "streams"])
def test_before_training_sees_the_steps_of_the_first_epoch(tiny_overrides, tmp_path, monkeypatch, layout):
    """Each step whole, whatever the accumulation; the run is the one without a look, and a resumed run does not look
    again."""
    command = [*tiny_overrides, "seeds=[0,1]", "epochs=2", "batch_size=20", f"layout={layout}"]
    [plain, _] = run_point([*command, f"results_dir={tmp_path}/plain", f"output_dir={tmp_path}/plain"])
    once = seen_before_training(monkeypatch, *command)
    parts = seen_before_training(
        monkeypatch, *command, "accumulation=4", f"results_dir={tmp_path}/parts", f"output_dir={tmp_path}/parts"
    )
    assert len(once) == len(parts) == 4 and not any(training for _, training, _ in once)
    for (ids, _, losses), (same_ids, _, same_losses) in zip(once, parts, strict=True):
        assert ids == same_ids and torch.equal(losses, same_losses) and losses.shape == (2,)
    looked = next((tmp_path / "results").rglob("*-s0.json"))
    assert curves(looked) == curves(plain)
    interrupted = [*command, f"results_dir={tmp_path}/again", f"output_dir={tmp_path}/again"]
    interrupt(interrupted)
    assert seen_before_training(monkeypatch, *interrupted) == []


def test_a_method_may_rule_out_its_first_evaluations(tiny_overrides, monkeypatch, tmp_path):
    """72 rows are 5 steps of an epoch. With 11 the first that counts, epochs 1 and 2 are marked, and neither is the
    best."""
    monkeypatch.setattr(LoRA, "selectable_from", property(lambda self: 11))
    monkeypatch.setattr("melora_bench.tasks.text.TextTask.score", falling_scores())
    [path] = run_point([*tiny_overrides, "epochs=4"])
    record = records.load(path)
    assert [entry.get("selectable", True) for entry in record.epochs] == [False, False, True, True]
    scores = [entry["metrics"][record.metric] for entry in record.epochs]
    assert scores == sorted(scores, reverse=True) and records.best_epoch(record)["epoch"] == 3
    assert stored_account(tmp_path / "outputs" / "runs" / record.run_id / "best.safetensors")["epoch"] == 3


@pytest.mark.parametrize(
    ("method", "epoch"),
    [
        # Of 50 steps the schedule ends with step 35: from 37 finished steps on the budget is kept.
        (["adalora", "method.init_r=4", "method.target_r=1", "method.delta_t=2"], 8),
        # The change of step 21 is the first that moves W: 22 steps are finished then.
        (["delta_lora", "method.start_step=20"], 5),
        (["lora"], 1),
    ],
)
def test_the_best_epoch_is_one_of_the_finished_method(method, epoch, tiny_overrides, tmp_path, monkeypatch):
    """10 epochs of 5 steps whose scores fall from epoch to epoch: the best is the first that may be chosen."""
    monkeypatch.setattr("melora_bench.tasks.text.TextTask.score", falling_scores())
    [path] = run_point([*tiny_overrides, f"method={method[0]}", *method[1:], "epochs=10"])
    record = records.load(path)
    assert [entry["step"] for entry in record.epochs] == list(range(5, 51, 5))
    assert [entry["epoch"] for entry in record.epochs if entry.get("selectable", True)] == [*range(epoch, 11)]
    assert records.best_epoch(record)["epoch"] == epoch
    assert stored_account(tmp_path / "outputs" / "runs" / record.run_id / "best.safetensors")["epoch"] == epoch
    ranks = [sum(entry["report"]["ranks"].values()) for entry in record.epochs if method[0] == "adalora"]
    assert all(rank == 4 for rank in ranks[epoch - 1 :]) and ranks[:1] in ([], [16])


@pytest.mark.parametrize(("recipe", "spared"), [("mplora/mrpc", True), ("melora/mrpc", False)])
def test_biases_are_decayed_as_the_papers_optimizer_does(tiny_overrides, tiny_roberta, recipe, spared):
    """MPLoRA: the tensors that transformers.Trainer leaves out, here the head's biases. MELoRA: none."""
    point = Point.of(*compose_run([*tiny_overrides, "task=mrpc", f"recipe={recipe}", "epochs=1"]))
    trainer = build(point, [0]).trainer
    names = {id(value): name for name, value in trainable(trainer.model).items()}
    decays = {
        names[id(value)]: group["weight_decay"] for group in trainer.optimizer.param_groups for value in group["params"]
    }
    base = transformers.AutoModelForSequenceClassification.from_pretrained(tiny_roberta, num_labels=2)
    stock = transformers.Trainer(base).get_decay_parameter_names(base)
    assert len(decays) == len(names) == 4 * 2 + 4
    heads = {name: decay for name, decay in decays.items() if name.startswith("classifier.")}
    assert {name for name, decay in heads.items() if decay} == {name for name in heads if name in stock or not spared}
    assert {decay for name, decay in decays.items() if name not in heads} == {0.1 if spared else 0.01}


def falling_scores():
    """A score that is lower with each evaluation: whole set and halves alike."""
    calls = itertools.count()
    return lambda self, outputs, half=None: {"accuracy": 0.9 - next(calls) // 3 / 100}


def test_a_dropped_hook_is_noticed(tiny_overrides, tmp_path, monkeypatch):
    """MPLoRA's numbers change when the loop forgets the penalty: the hook bites."""
    command = [*tiny_overrides, *NO_DROPOUT, "method=mplora", "method.penalty_weight=100", "lr=0.05"]
    [with_penalty] = run_point(command)
    monkeypatch.setattr("melora_bench.methods.mplora.MPLoRA.penalty", lambda self: 0.0)
    [without] = run_point([*command, f"results_dir={tmp_path}/without", f"output_dir={tmp_path}/without"])
    assert curves(with_penalty)[-1]["penalty"] > 0
    assert curves(with_penalty)[-1]["train_loss"] != curves(without)[-1]["train_loss"]


def test_one_replica_goes_bad(tiny_overrides, tmp_path, monkeypatch):
    """A replica whose loss is not finite stops and writes no record; the others finish bit-equal to a run where it did
    not."""
    command = [*tiny_overrides, "seeds=[0,1,2]"]
    good = run_point([*command, f"results_dir={tmp_path}/good", f"output_dir={tmp_path}/good"])
    poison_replica_1(monkeypatch)
    with pytest.raises(RunError, match=r"seed 1 stopped at step 6: its loss was not finite.*lower lr"):
        run_point(command)
    written = sorted((tmp_path / "results").rglob("*.json"))
    assert [records.load(path).seed for path in written] == [0, 2]
    assert [curves(path) for path in written] == [curves(good[0]), curves(good[2])]
    whole, partly = adapters(tmp_path / "good"), adapters(tmp_path / "outputs")
    assert all(equal(whole[seed], partly[seed]) for seed in (0, 2))
    [error] = (tmp_path / "outputs").rglob("error.txt")
    assert error.parent.name.endswith("-s1") and "step 6" in error.read_text()


def test_a_run_may_be_evaluated_and_end_by_steps(tiny_overrides, tmp_path, monkeypatch):
    """72 rows are 5 steps of an epoch: rounds of 3 steps to step 11, over epochs 0.6, 1.2, 1.8 and 2.2; killed in the
    middle of an epoch it ends as unbroken, and it trains as a run with rounds of 11 steps does."""
    command = [*tiny_overrides, *NO_DROPOUT, "seeds=[0,1]", "epochs=4", "max_steps=11", "warmup_steps=2"]
    whole = run_point([*command, "eval_steps=3", f"results_dir={tmp_path}/whole", f"output_dir={tmp_path}/whole"])
    found = records.load(whole[0])
    assert [entry["step"] for entry in found.epochs] == [3, 6, 9, 11]
    assert [entry["epoch"] for entry in found.epochs] == [0.6, 1.2, 1.8, 2.2]
    assert "singular_values_above_0.1" in found.epochs[-1]["report"]
    real = Trainer.train_round

    def dies(self, on_step):
        if self.step == 6:
            raise Interrupted
        real(self, on_step)

    monkeypatch.setattr(Trainer, "train_round", dies)
    with pytest.raises(RunError, match="Interrupted"):
        run_point([*command, "eval_steps=3"])
    monkeypatch.setattr(Trainer, "train_round", real)
    resumed = run_point([*command, "eval_steps=3"])
    assert records.load(resumed[0]).resumed_at == [1.2]
    assert [curves(path) for path in resumed] == [curves(path) for path in whole]
    once = run_point([*command, f"results_dir={tmp_path}/once", "eval_steps=11"])
    assert curves(once[1])[-1]["metrics"] == curves(whole[1])[-1]["metrics"]
    means = [curves(path) for path in (once[1], whole[1])]
    assert means[0][0]["train_loss"] * 11 == pytest.approx(
        sum(entry["train_loss"] * steps for entry, steps in zip(means[1], (3, 3, 3, 2), strict=True)), abs=1e-4
    )


def test_init_from_an_earlier_run(tiny_overrides, tmp_path):
    """Training starts from the adapters of the earlier run's same seed, under a fresh head; the record says so."""
    [first] = run_point([*tiny_overrides, "seeds=[1]", "experiment=mnli"])
    source = records.load(first)
    name = source.run_id.removesuffix("-s1")
    [second] = run_point([*tiny_overrides, "seeds=[1]", "task=mrpc", f"init_from={name}", "lr=1e-12", "epochs=1"])
    record = records.load(second)
    assert record.init_from["run_id"] == source.run_id and record.config["init_from"] == name
    one, two = (load_file(tmp_path / "outputs" / "runs" / r.run_id / "last.safetensors") for r in (source, record))
    same = {key for key in one if torch.allclose(one[key], two[key], atol=1e-6)}
    assert same == {key for key in one if not key.startswith("classifier.")}


def test_init_from_a_task_finds_the_like_run_of_each_seed(tiny_overrides, tmp_path):
    """Of the same experiment, method, settings and seed; with none of them, or two, it says so."""
    first = run_point([*tiny_overrides, "seeds=[0,1]", "epochs=1"])
    run_point([*tiny_overrides, "seeds=[0,1]", "epochs=1", "method.r=4"])
    start = [*tiny_overrides, "task=mrpc", "init_from=sst2", "epochs=1"]
    second = run_point([*start, "seeds=[0,1]"])
    assert [records.load(path).init_from["run_id"] for path in second] == [records.load(path).run_id for path in first]
    with pytest.raises(RunError, match=r"init_from=sst2: 0 runs adhoc/sst2/lora-\*-s2 .* train task=sst2 first"):
        run_point([*start, "seeds=[2]"])
    run_point([*tiny_overrides, "seeds=[0]", "epochs=1", "lr=0.01"])
    with pytest.raises(RunError, match=r"init_from=sst2: 2 runs adhoc/sst2/lora-\*-s0 "):
        run_point([*start, "seeds=[0]", f"results_dir={tmp_path}/again"])


def test_init_from_a_task_finds_the_tables_own_run(tiny_overrides, tmp_path, caplog):
    """A trial of a table starts at its own run of that task or, without one, at the table's; a damaged file is
    passed."""
    first = [*tiny_overrides, "seeds=[0]", "epochs=1"]
    [own] = run_point([*first, "experiment=init_from_mnli"])
    bad = tmp_path / "outputs" / "runs" / "init_from_mnli" / "sst2" / "lora-bad-s0" / "last.safetensors"
    bad.parent.mkdir()
    bad.write_text("no tensors")
    trial = ["experiment=init_from_mnli-epochs-1"]
    start = [*first, *trial, "table=init_from_mnli", "task=mrpc", "init_from=sst2", "hydra.mode=RUN"]
    [made] = run_point(start)
    assert records.load(made).init_from["run_id"] == records.load(own).run_id
    assert f"pass  {bad} is not a readable adapter" in caplog.text
    [nearer] = run_point([*first, *trial])
    [made] = run_point([*start, f"results_dir={tmp_path}/again"])
    assert records.load(made).init_from["run_id"] == records.load(nearer).run_id


def test_clipping_is_per_replica(tiny_overrides, tmp_path):
    """A replica's clipped step does not depend on the size of its neighbour's gradient."""
    command = [*tiny_overrides, *NO_DROPOUT, "max_grad_norm=0.01", "lr=0.01"]
    packed = run_point([*command, "seeds=[0,1]"])
    [alone] = run_point([*command, "seeds=[1]", f"results_dir={tmp_path}/alone", f"output_dir={tmp_path}/alone"])
    assert curves(packed[1])[-1]["train_loss"] == pytest.approx(curves(alone)[-1]["train_loss"], abs=2e-6)


def test_bf16_runs_and_is_recorded(tiny_overrides):
    [path] = run_point([*tiny_overrides, "precision=bf16", "epochs=6", "lr=0.02"])
    record = records.load(path)
    assert record.env["precision"] == "bf16"
    assert record.epochs[-1]["train_loss"] < record.epochs[0]["train_loss"]


def test_in_tensorboard_every_seed_is_a_run_and_the_tags_are_common(tiny_overrides, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    tracked = [*tiny_overrides, "tracker=tensorboard", "seeds=[0,1]"]
    paths = run_point(tracked) + run_point([*tracked, "method=melora", "method.n=4"])
    runs = EventMultiplexer().AddRunsFromDirectory(str(tmp_path / "outputs" / "tensorboard")).Reload()
    assert [(name.rpartition(" ")[0], name[-3:]) for name in sorted(runs.Runs())] == [
        (f"adhoc/sst2 {label}", seed) for label in ("lora", "melora n=4") for seed in ("-s0", "-s1")
    ]
    for path, name in zip(paths, sorted(runs.Runs()), strict=True):
        record = records.load(path)
        assert name.endswith(f"{record.config_hash[:10]}-s{record.seed}")
        assert set(runs.Runs()[name]["scalars"]) == {"train_loss", "penalty", "lr", "accuracy"}
        tracked = [(event.step, event.value) for event in runs.Scalars(name, "train_loss")]
        assert tracked == [(entry["step"], pytest.approx(entry["train_loss"])) for entry in record.epochs]
        [settings] = runs.Tensors(name, "settings/text_summary")
        assert b'"method.r": "8"' in settings.tensor_proto.string_val[0]


@pytest.mark.parametrize("dropout", [[], NO_DROPOUT], ids=["with dropout", "without"])
def test_every_round_drops_otherwise(tiny_overrides, dropout):
    """Nothing is learned from one row at this rate: its loss in two epochs differs by dropout alone."""
    [path] = run_point([*tiny_overrides, *dropout, "lr=1e-12", "max_train_rows=1", "bucket=1"])
    first, second = (entry["train_loss"] for entry in records.load(path).epochs)
    assert (first == second) == bool(dropout)
