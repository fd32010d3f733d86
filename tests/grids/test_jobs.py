"""The points of a table's grid, narrowed from the command line, and their states as `melora-bench status` prints
them."""

import re
import subprocess
import sys
import threading

import pytest
from conftest import composed
from omegaconf import OmegaConf
from synthetic import record

from melora_bench.commands import status
from melora_bench.external.shapes import name as is_name
from melora_bench.files import ROOT
from melora_bench.grids.jobs import jobs
from melora_bench.grids.tables import load_table
from melora_bench.grids.trials import experiment
from melora_bench.results.assembled import assemble
from melora_bench.training.points import Point

TABLES = sorted(path.stem for path in (ROOT / "configs" / "table").glob("*.yaml"))


def grid(name: str, *overrides: str) -> list[list[str]]:
    return jobs(load_table(name), list(overrides))


@pytest.mark.parametrize(
    ("name", "per_task", "tasks"),
    [
        ("melora_table2", 10, "mnli sst2 mrpc cola qnli qqp rte stsb"),
        ("mplora_table2", 8, "mrpc cola sst2 stsb qnli rte"),
        ("quickstart", 17, "movie tweets"),
        ("melora_table4", 11, "mnli sst2 mrpc cola qnli qqp rte stsb"),
        ("mplora_table1", 10, "mrpc cola sst2 stsb"),
        ("mplora_table3", 33, "mrpc cola stsb"),
        ("audit", 6, "movie"),
    ],
)
def test_a_table_is_its_rows_times_its_tasks(name, per_task, tasks):
    made = grid(name)
    assert len(made) == per_task * len(tasks.split())
    assert all(sum(f"task={task}" in job for job in made) == per_task for task in tasks.split())


@pytest.mark.parametrize("name", TABLES)
def test_no_point_stands_twice_and_each_names_its_task_and_method_once(name):
    made = grid(name)
    assert len({frozenset(job) for job in made}) == len(made)
    for job in made:
        keys = [override.partition("=")[0] for override in job]
        assert len(set(keys)) == len(keys)
        assert {"task", "method"} <= set(keys)


@pytest.mark.parametrize(
    ("overrides", "count"),
    [
        (["task=mrpc"], 8),
        (["task=mrpc,cola"], 16),
        (["method=lora"], 6),
        (["method=melora,mplora"], 36),
        (["method.n=4"], 12),
        (["method.n=4, 8", "task=rte"], 4),
        (["task=rte", "method=mplora", "method.n=8"], 1),
        (["method.r=8"], 42),
        (["method=lora,adalora"], 12),
        (["lr=1e-3", "seeds=[0,1]"], 48),
    ],
)
def test_narrowing(overrides, count):
    assert len(grid("mplora_table2", *overrides)) == count


def test_a_point_in_full():
    assert grid("melora_table2", "method=melora", "task=qqp,rte", "method.n=4", "method.r=1") == [
        ["task=qqp", "method=melora", "method.r=1", "method.n=4"],
        ["task=rte", "method=melora", "method.r=1", "method.n=4"],
    ]


def test_what_no_row_lists_is_appended_to_every_point():
    made = grid("quickstart", "epochs=1", "task=movie", "seeds=[0,1]", "+note=a=b")
    assert len(made) == 17
    assert all(job[-3:] == ["epochs=1", "seeds=[0,1]", "+note=a=b"] for job in made)
    assert ["task=movie", "method=head", "epochs=1", "seeds=[0,1]", "+note=a=b"] in made


def test_a_row_keeps_its_own_values():
    """Else its records would not be the row's."""
    assert ["task=movie", "method=full", "recipe=finetune", "lr=0.0001"] in grid("quickstart", "lr=1")
    assert ["task=movie", "method=lora", "lr=1"] in grid("quickstart", "lr=1", "method=lora")


def test_a_value_that_reaches_no_point_is_refused():
    with pytest.raises(ValueError, match=r"lr=1 changes no point: every row that is left has a value of its own"):
        grid("quickstart", "lr=1", "method=full")


def test_a_row_with_another_backbone_of_its_own_is_left_out():
    assert sum("backbone=llama2_7b_nf4" in job for job in grid("melora_table3")) == 1
    assert len(grid("melora_table3", "backbone.path=here")) == len(grid("melora_table3")) == 13
    assert [job for job in grid("melora_table3", "backbone=smollm2") if "backbone=smollm2" not in job] == []
    assert len(grid("melora_table3", "backbone=smollm2")) == 12
    assert (
        len(grid("melora_table3", "backbone=llama2_7b")) == len(grid("melora_table3", "backbone=llama2_7b_nf4")) == 13
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=mnli"], "no point of this table has task=mnli; it has task=mrpc,cola,sst2,stsb,qnli,rte"),
        (["method.n=3"], "no point of this table has method.n=3; it has method.n=2,4,8"),
        (
            ["method=lora", "method.n=4"],
            "has method=lora method.n=4; it has method=lora,adalora,melora,mplora; method.n=2,4,8",
        ),
        (["task="], "no point of this table has task=; it has task="),
    ],
)
def test_nothing_left_is_refused_with_what_there_is(overrides, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        grid("mplora_table2", *overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["seeds=[0,1]"],
        ["task=mrpc", "method=lora"],
        ["method.n=4"],
        ["data=local", "data.root=/x"],
        ["backbone=minilm"],
        ["backbone.path=/x"],
        ["results_dir=/x", "output_dir=/y", "tracker=wandb", "shard=true", "compile=true"],
        ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
        ["experiment=mine", "epochs=1"],
        ["precision=no", "task=mrpc", "method=lora"],
        ["lr=0.0004", "weight_decay=1e-1", "task=mrpc,rte", "method=lora,adalora"],
        [
            "recipe=mplora/mrpc",
            "task=mrpc",
            "method=lora",
            "data.revision=main",
            "hydra.mode=RUN",
            "table=mplora_table2",
        ],
    ],
)
def test_what_leaves_a_grid_in_its_own_experiment(overrides):
    """Which points, where files are, who trains them, on which backbone; values that the table's points have anyway,
    however they are written; and a name of the user's has the last word."""
    name, trial = experiment(load_table("mplora_table2"), overrides)
    assert (name, trial) == ("mine" if overrides and overrides[0] == "experiment=mine" else "mplora_table2", [])


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["max_train_rows=32"], "mplora_table2-max_train_rows-32"),
        (["task=mrpc", "epochs=1", "batch_size=8"], "mplora_table2-batch_size-8-epochs-1"),
        pytest.param(["precision=bf16"], "mplora_table2-precision-bf16", marks=pytest.mark.slow),
        pytest.param(["method.alpha=8"], "mplora_table2-method.alpha-8", marks=pytest.mark.slow),
        pytest.param(["recipe=quick"], "mplora_table2-recipe-quick", marks=pytest.mark.slow),
        pytest.param(
            ["data=local", "data.splits.train=train_small"],
            "mplora_table2-data.splits.train-train_small",
            marks=pytest.mark.slow,
        ),
        pytest.param(["+note=x"], "mplora_table2-note-x", marks=pytest.mark.slow),
        # On MRPC as it is, on CoLA another.
        (["weight_decay=0.1", "epochs=30"], "mplora_table2-epochs-30-weight_decay-0.1"),
        (["task=mrpc", "init_from=/home/somebody/adapter"], "mplora_table2-init_from-"),
    ],
)
def test_a_trial_gets_an_experiment_of_its_own(overrides, name):
    """In whatever order it was typed; a name is one part of a path, and not too long for one."""
    grid = load_table("mplora_table2")
    found = experiment(grid, overrides)[0]
    assert found == experiment(grid, overrides[::-1])[0] and "somebody" not in found
    assert re.fullmatch(f"{re.escape(name)}[0-9a-f]{{8}}" if name[-1] == "-" else re.escape(name), found)
    long, other = (experiment(grid, [f"method.target_modules=[{'x' * 300}{end}]"])[0] for end in "ab")
    assert long != other and len(long) < 100 and is_name(long)


@pytest.mark.slow
def test_a_trial_of_a_table_does_not_poison_it(tiny_overrides, tmp_path, capsys, monkeypatch):
    """Its records go to an experiment of their own, which is said first, and which status, plan and tables find by the
    same overrides; the table of the table's own records is what it was."""
    kept = [
        item for item in tiny_overrides if not item.startswith(("task=", "epochs=", "batch_size=", "backbone.name="))
    ]
    own = [*kept, "task=mrpc", "method=lora", "seeds=[0]"]
    short = [*own, "epochs=1", "batch_size=16", "max_length=64"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "train.py"), "table=mplora_table2", *short, "max_train_rows=32"],
        capture_output=True,
        text=True,
    )
    out = done.stdout + done.stderr
    name = "mplora_table2-batch_size-16-epochs-1-max_length-64-max_train_rows-32"
    assert done.returncode == 0, out
    assert f"trial  batch_size=16 epochs=1 max_length=64 max_train_rows=32: records go to experiment={name}" in out
    assert re.search(r"train  mrpc lora  seeds \[0\]  recipe=mplora/mrpc \(mplora's\): lr ", out)
    [path] = (tmp_path / "results").rglob("*.json")
    assert path.parent.parent.name == name
    monkeypatch.setattr("melora_bench.training.inputs.warn_once", lambda text: pytest.fail(text))
    assert status.main(["mplora_table2", *short, "max_train_rows=32"]) == 0
    assert f"mplora_table2 (experiment={name}): 1 done, 0 running, 0 failed, 0 missing" in capsys.readouterr().out
    assert assemble("mplora_table2", str(tmp_path / "results")).cells == {}
    assert len(assemble("mplora_table2", str(tmp_path / "results"), name).cells) == 1


def point(*overrides: str) -> Point:
    cfg = composed(list(overrides), return_hydra_config=True)
    return Point.of(OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"]), cfg.hydra.runtime.choices)


@pytest.fixture
def mine(tmp_path) -> tuple[list[str], Point]:
    """The overrides that narrow mplora_table2 to one point below tmp_path, and the point."""
    own = [
        "task=mrpc",
        "method=mplora",
        "method.n=2",
        f"results_dir={tmp_path}/results",
        f"output_dir={tmp_path}/outputs",
    ]
    return [*own, "seeds=[0,1,2,3,4]"], point("table=mplora_table2", *own, "seeds=[0,1,2,3,4]")


def failed(of: Point, seed: int) -> None:
    of.output(seed).mkdir(parents=True, exist_ok=True)
    (of.output(seed) / "error.txt").write_text("the loss was not finite\n\nTraceback\n")


def test_status_counts_done_running_failed_and_missing(mine, capsys, tmp_path):
    overrides, of = mine
    made = record(method="mplora", n=2)
    made.run_id = of.run_id(0)
    made.save(tmp_path / "results")
    failed(of, 0)  # an error that a later run made good
    failed(of, 2)
    status.show("mplora_table2", overrides)
    line, reason, total = capsys.readouterr().out.strip().splitlines()
    assert line.split("  ") == ["mrpc mplora n=2", "done [0]", "failed [2]", "missing [1, 3, 4]", of.name]
    assert reason == f"  failed: the loss was not finite (seeds [2]; the trace is in {of.output(2)}/error.txt)"
    assert total == "mplora_table2: 1 done, 0 running, 1 failed, 3 missing"
    with of.claimed():
        status.show("mplora_table2", overrides)
    line, total = capsys.readouterr().out.strip().splitlines()
    assert line.split("  ")[1:] == ["done [0]", "running [1, 2, 3, 4]", of.name]
    (tmp_path / "results" / "runs" / f"{of.run_id(0)}.json").write_text("{}")
    status.show("mplora_table2", overrides)
    line, refused, failure, total = capsys.readouterr().out.strip().splitlines()
    assert "refused [0]" in line and "has schema None" in refused and "failed: the loss" in failure
    assert total == "mplora_table2: 0 done, 1 refused, 0 running, 1 failed, 3 missing"


def test_states_in_the_order_in_which_they_count(mine):
    """An earlier error does not count while the point runs again; what nobody holds any more is failed or missing."""
    _, of = mine
    failed(of, 0)
    with of.claimed() as held:
        assert held and of.state(0) == of.state(1) == "running"
    assert (of.state(0), of.state(1)) == ("failed", "missing")


def test_a_look_does_not_take_the_point(mine):
    """While `state` looks again and again, a worker still gets the point."""
    _, of = mine
    with of.claimed():
        pass
    looking = threading.Event()
    watcher = threading.Thread(target=lambda: [of.state(0) for _ in iter(looking.is_set, True)])
    watcher.start()
    try:
        for _ in range(20):
            with of.claimed() as mine_now:
                assert mine_now
    finally:
        looking.set()
        watcher.join()


def test_a_record_counts_in_its_own_experiment_only(mine, tmp_path):
    _, of = mine
    other = point(
        "table=mplora_table2", "task=mrpc", "method=mplora", "method.n=2", "experiment=again", f"results_dir={tmp_path}"
    )
    assert other.name == of.name
    made = record(method="mplora", n=2)
    made.run_id = of.run_id(0)
    assert other.record(0) is None
    made.save(tmp_path)
    assert (other.record(0), of.config.results_dir) == (None, f"{tmp_path}/results")
    made.run_id = other.run_id(0)
    path = made.save(tmp_path)
    assert (other.record(0), other.state(0), other.state(1)) == (path, "done", "missing")


def test_main_succeeds_where_one_table_has_a_point(capsys, tmp_path):
    assert status.main(["method=mplora", "task=mrpc", "method.n=2", f"results_dir={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert "melora_table2: no point of this table has method=mplora" in out
    assert "mplora_table2: 0 done, 0 running, 0 failed, 3 missing" in out
    assert status.main(["task=qqp", "method=mplora"]) == 1


def test_main_reports_what_it_refuses(capsys):
    assert status.main(["mplora_table2", "task=mnli"]) == 1
    assert "error: no point of this table has task=mnli" in capsys.readouterr().err
    assert status.main(["nonsense"]) == 2
    assert "error: table 'nonsense' is unknown" in capsys.readouterr().err
    assert status.main(["quickstart", "task=movie", "method=lora", "epoch=1"]) == 2
    assert "error: Could not override 'epoch': did you mean epochs?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seeds=[0,0]", "must be a list of different numbers"),
        ("seeds=[]", "must be a list of different numbers"),
        ("seeds=3", "must be a list of different numbers"),
        ("seeds=[-1]", "must be whole numbers from 0 on"),
        ("+epoch=1", "epoch is no key of configs/train.yaml"),
        ("epochs=2.5", "epochs=2.5 must be a positive whole number"),
        ("lr=true", "lr=True must be a positive number"),
        ("warmup_ratio=2", "at most 1"),
        ("seeds=[0.5]", "must be whole numbers from 0 on"),
        ("epochs=0", "epochs=0 must be a positive whole number"),
        ("lr=null", "lr=None must be a positive number"),
        ("max_train_rows=0", "max_train_rows=0 must be a positive whole number, or null"),
        ("precision=fp8", "precision='fp8' is unknown: use no, bf16 or fp16"),
    ],
)
def test_values_that_no_run_can_have_are_refused(override, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        point(override)


def test_a_home_in_an_override_names_one_trial_everywhere(tmp_path, monkeypatch, capsys):
    """status expands it as the sweep does, so that both look in one place."""
    monkeypatch.setenv("HOME", str(tmp_path))
    names = []
    for place in ("~/adapters", f"{tmp_path}/adapters"):
        point = ["task=mrpc", "method=lora", f"results_dir={tmp_path}", f"output_dir={tmp_path}"]
        assert status.main(["mplora_table2", *point, f"init_from={place}"]) == 0
        names.append(capsys.readouterr().out)
    assert names[0] == names[1] and "mplora_table2 (experiment=mplora_table2-init_from-" in names[0]
