"""From a trained run to its score: the record, what lies beside it, and the table that shows both models."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from conftest import run_point
from hydra.errors import MissingConfigException
from instruct_runs import composed_score, overrides, save_model, scored, sized, stored
from safetensors.torch import load_file, save_file

from melora_bench.adapters.files import stored_account
from melora_bench.external.notices import warn_once
from melora_bench.files import ROOT
from melora_bench.instructeval.config import misnamed
from melora_bench.instructeval.generate import generate
from melora_bench.records import records
from melora_bench.results.tables import regenerate
from melora_bench.training.claims import claimed


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def place(tmp_path, model):
    """Overrides for training and for scoring on made-up files under tmp_path."""
    return overrides(tmp_path, model)


def test_a_tuned_and_an_untuned_model_are_scored_recorded_and_tabulated(place, tmp_path):
    train, scoring = place
    [trained] = run_point([*train, "method=melora", "method.r=1", "method.n=8", "method.lora_dropout=0"])
    for name in ("mmlu", "bbh"):
        [tuned] = scored(name, [*scoring, "run=instruct_quickstart", "experiment=instruct_quickstart"])
        [plain] = scored(name, [*scoring, "experiment=instruct_quickstart"])
        rows = stored(tuned, name)
        record, source = records.load(tuned), records.load(trained)
        assert record.epochs[0]["report"]["questions"] == len(rows) == (4 if name == "mmlu" else 3)
        if name == "mmlu":
            assert record.epochs[0]["metrics"]["score"] == sum(row["score"] for row in rows) / len(rows)
        assert record.init_from["run_id"] == source.run_id and record.params["adapter"] == source.params["adapter"]
        assert record.choices["method"] == "melora" and records.load(plain).choices["method"] == "head"
        assert record.config["task"]["limit"] is None and record.config["lr"] == source.config["lr"]
        assert record.run_id == str(tuned.relative_to(tmp_path / "results" / "runs").with_suffix(""))
    csv, markdown, _ = regenerate("instruct_quickstart", str(tmp_path / "results"))
    table = pd.read_csv(csv).set_index(["row", "task"])
    assert (
        table.loc[("without tuning", "mmlu"), "best_mean"]
        == 100
        * records.load(next((tmp_path / "results/runs/instruct_quickstart/mmlu").glob("head-*.json"))).epochs[0][
            "metrics"
        ]["score"]
    )
    assert table.loc[("MELoRA r=1 n=8", "bbh"), "seeds"] == 1
    assert "last epoch" not in markdown.read_text()


def test_a_trial_of_scores_leaves_the_runs_experiment_alone(place, tmp_path, caplog):
    train, scoring = place
    [trained] = run_point([*train, "method=lora"])
    run = f"run={records.load(trained).run_id}"
    caplog.set_level("INFO", logger="melora_bench")
    [path] = scored("mmlu", [*scoring, run, "limit=2"])
    name = "instruct_quickstart-limit-2-task.shots-2-task.subjects-2"
    assert records.load(path).run_id.split("/")[0] == path.parent.parent.name == name
    line = (
        f"trial  limit=2 task.shots=2 task.subjects=2: records go to experiment={name}, beside those of the run; give "
    )
    assert [text.startswith(line) for text in caplog.messages].index(True) < [
        text.startswith("done") for text in caplog.messages
    ].index(True)
    assert not (tmp_path / "results" / "runs" / "instruct_quickstart" / "mmlu").exists()
    [path] = scored("mmlu", [*scoring, run, "limit=2", "experiment=elsewhere"])
    assert records.load(path).run_id.startswith("elsewhere/mmlu/lora-")


def test_a_score_that_another_process_is_at_work_on_is_left_alone(place, tmp_path):
    scoring = place[1]
    [path] = scored("bbh", [*scoring, "limit=2"])
    before = json.loads(path.read_text())
    path.unlink()
    lock = tmp_path / "outputs" / "runs" / f"{before['run_id']}.lock"
    assert lock.exists()
    with claimed(lock) as mine:
        assert mine
        assert scored("bbh", [*scoring, "limit=2"]) == []
        assert not path.exists()
        assert len(scored("bbh", [*scoring, "limit=3"])) == 1
    assert scored("bbh", [*scoring, "limit=2"]) == [path]
    assert json.loads(path.read_text())["epochs"] == before["epochs"]


def test_what_is_recorded_is_not_scored_again_and_a_slice_is_another_record(place, monkeypatch):
    _, scoring = place
    [whole] = scored("mmlu", scoring)
    before = whole.read_bytes()
    [part] = scored("mmlu", [*scoring, "limit=2"])
    assert part != whole and records.load(part).epochs[0]["report"]["questions"] == 2
    monkeypatch.setattr("melora_bench.instructeval.score.evaluate", None)  # would raise if it were called
    assert scored("mmlu", scoring) == [whole] and whole.read_bytes() == before


def test_a_score_on_other_files_is_no_score_on_these(place, tmp_path):
    _, scoring = place
    [path] = scored("mmlu", scoring)
    before, [file] = path.read_bytes(), sorted((tmp_path / "instruct" / "mmlu" / "test").glob("*.csv"))[:1]
    file.write_text(file.read_text().replace("?", "??"))
    with pytest.raises(ValueError, match=r"is the score of other inputs .*data test: .*: give another results_dir"):
        scored("mmlu", scoring)
    assert path.read_bytes() == before


@pytest.mark.parametrize("absent", ["model", "questions"])
def test_a_score_stands_where_its_weights_or_questions_are_not_at_hand(absent, place, model, tmp_path, caplog):
    """With a warning; the other of the two is compared."""
    own = shutil.copytree(model, tmp_path / "model")
    scoring = [*(item for item in place[1] if not item.startswith("backbone.path")), f"backbone.path={own}"]
    [path] = scored("mmlu", scoring)
    warn_once.cache_clear()
    shutil.rmtree({"model": own, "questions": tmp_path / "instruct"}[absent])
    assert scored("mmlu", scoring) == [path]
    assert f"not compared with their {absent.replace('model', 'weights')}, not at hand here: " in caplog.text
    if absent == "model":
        [file, *_] = (tmp_path / "instruct" / "mmlu" / "test").glob("*.csv")
        file.write_text(file.read_text().replace("?", "??"))
    else:
        config = json.loads((own / "config.json").read_text())
        (own / "config.json").write_text(json.dumps(config | {"rope_theta": 1.0}))
    with pytest.raises(ValueError, match=r"is the score of other inputs"):
        scored("mmlu", scoring)


def test_what_was_written_outlives_a_sandbox_that_fails(place, monkeypatch):
    """The next start runs the programs and asks nothing again."""
    _, scoring = place
    scoring = [*scoring, "allow_code_execution=true", "benchmark.max_new_tokens=8"]
    calls = []

    def run(program, **_):
        calls.append(program)
        if len(calls) == 2:
            raise ValueError("isolation=namespaces does not work here")
        return SimpleNamespace(passed=True)

    monkeypatch.setattr("melora_bench.instructeval.score.sandbox.run", run)
    with pytest.raises(ValueError, match="does not work here"):
        scored("humaneval", scoring)
    monkeypatch.setattr("melora_bench.instructeval.evaluation.generate", None)  # would raise if it were called
    [path] = scored("humaneval", scoring)
    assert records.load(path).epochs[0]["metrics"] == {"score": 1.0, "ceiling": 1.0}
    assert not list(path.parent.rglob("*.unscored*"))


def test_a_sandbox_that_fails_everything_is_refused(place, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "melora_bench.instructeval.score.sandbox.run", lambda program, **_: SimpleNamespace(passed=False)
    )
    with pytest.raises(ValueError, match="isolation=namespaces fails even an empty program"):
        scored("humaneval", [*place[1], "allow_code_execution=true"])
    assert not (tmp_path / "results").exists()


def test_programs_of_a_model_run_with_permission_only(place, tmp_path):
    _, scoring = place
    with pytest.raises(ValueError, match="allow_code_execution=true"):
        scored("humaneval", scoring)
    assert not (tmp_path / "results").exists()


def test_the_weaker_sandbox_must_be_asked_for_and_is_recorded(place, monkeypatch):
    _, scoring = place
    scoring, asked = [*scoring, "limit=1", "allow_code_execution=true", "benchmark.max_new_tokens=8"], []
    with pytest.raises(ValueError, match=r"isolation='none' is not one of namespaces, process"):
        scored("humaneval", [*scoring, "isolation=none"])

    def run(program, **options):
        asked.append(options)
        return SimpleNamespace(passed=True)

    monkeypatch.setattr("melora_bench.instructeval.score.sandbox.run", run)
    [path] = scored("humaneval", [*scoring, "isolation=process"])
    assert records.load(path).epochs[0]["report"]["isolation"] == "process"
    assert asked == [{"allow_code_execution": True, "isolation": "process"}] * 3  # none, the model's, the authors'


def test_out_of_memory_says_what_to_lower_and_finished_subjects_are_kept(place, monkeypatch):
    _, scoring = place
    batches = []

    def full_at_the_second_subject(*given, **options):
        batches.append(options["batch_size"])
        if len(batches) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return generate(*given, **options)

    monkeypatch.setattr("melora_bench.instructeval.evaluation.generate", full_at_the_second_subject)
    with pytest.raises(ValueError, match=r"out of memory at batch_size=8: lower it, .* finished subjects are kept"):
        scored("mmlu", scoring)
    [path] = scored("mmlu", [*scoring, "batch_size=1"])
    record = records.load(path)
    assert batches == [8, 8, 1]
    assert record.epochs[0]["report"]["questions"] == 4 and record.resumed_at == [1] and record.rows_per_second > 0
    [path] = scored("bbh", scoring)
    assert records.load(path).resumed_at == []


def test_adapters_that_are_not_trained_to_their_end_are_not_scored(place, tmp_path, caplog):
    """What a killed run, or one whose loss was not finite, leaves behind."""
    train, scoring = place
    run_point([*train, "method=lora", "method.lora_dropout=0"])
    [last] = (tmp_path / "outputs").rglob("last.safetensors")
    whole, tensors = stored_account(last), load_file(last)
    save_file(tensors, last, {"melora_bench": json.dumps(whole | {"step": 1})})
    with pytest.raises(ValueError, match="has no adapters that are trained to their end"):
        scored("bbh", [*scoring, "run=instruct_quickstart"])
    assert "is trained for 1 of 2 steps" in caplog.text and not list((tmp_path / "results").glob("runs/*/bbh/*"))


def test_the_harness_gets_the_model_under_the_same_precision(place, monkeypatch):
    _, scoring = place
    seen = []

    def harness(model, tokenizer, name, **options):
        seen.append((name, options["autocast"]))
        return {"engine": "lm_eval", "results": {}, "versions": {}}

    monkeypatch.setattr("melora_bench.instructeval.score.harness_scores", harness)
    monkeypatch.setattr("melora_bench.instructeval.score.check_harness", lambda benchmark: None)
    scored("mmlu", [*scoring, "protocol=lm_eval"])
    scored("mmlu", [*scoring, "protocol=lm_eval", "precision=bf16"])
    assert seen == [("mmlu", None), ("mmlu", torch.bfloat16)]
    with pytest.raises(ValueError, match=r"backbone.dtype=bfloat16 needs a precision like it"):
        scored("mmlu", [*scoring, "protocol=lm_eval", "backbone.dtype=bfloat16"])


@pytest.mark.slow
def test_of_several_benchmarks_one_that_is_refused_does_not_stop_the_others(place, tmp_path):
    _, scoring = place
    command = [sys.executable, str(ROOT / "scripts" / "instructeval.py"), "-m", *scoring, "benchmark=humaneval,bbh"]
    done = subprocess.run([*command, *sized("bbh")[1:]], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode != 0 and "set allow_code_execution=true" in done.stderr and "Traceback" not in done.stderr
    assert [path.parent.name for path in (tmp_path / "results").rglob("*.json")] == ["bbh"]


def test_prompts_fetch_a_tokenizer_only(place, model, tmp_path, monkeypatch):
    _, scoring = place
    asked = []

    def snapshot(repo, revision, *, patterns, **_):
        asked.extend(patterns)
        return model, "0" * 40

    monkeypatch.setattr("melora_bench.models.base.hub_snapshot", snapshot)
    kept = [item for item in scoring if not item.startswith("backbone")]
    scored("bbh", [*kept, "backbone=llama2_7b", "limit=2", f"prompts={tmp_path}/p.jsonl"])
    assert "*.safetensors" not in asked and "tokenizer*" in asked
    assert json.loads((tmp_path / "p.jsonl").read_text().splitlines()[0])["tokens"] > 0


def test_prompts_need_no_weights(place, tmp_path, caplog):
    _, scoring = place
    caplog.set_level("INFO")
    assert (
        scored("bbh", [*scoring, "limit=2", f"prompts={tmp_path}/p.jsonl", f"backbone.path={tmp_path}/nowhere"]) == []
    )
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [line["tokens"] for line in lines] == [None, None] and "no shot is dropped" in caplog.text
    assert [line["subject"] for line in lines] == ["answers", "negation"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run=nothing", r"nothing.* does not exist: run= takes a record"),
        ("precision=fp8", r"precision='fp8' is unknown"),
        ("protocol=mine", r"protocol='mine' is unknown"),
        ("data=embedded", r"the benchmarks are not embedded: use data=hub, or data=local"),
        ("data.root=/nowhere", r"data.root=/nowhere is no folder"),
        ("limit=0", r"limit=0 leaves no question"),
        ("limit=2.5", r"limit=2.5 must be a whole number, or null"),
        ("limit=many", r"limit=many must be a whole number, or null"),
        ("batch_size=-1", r"batch_size=-1 must be a whole number from 1 on"),
        ("batch_size=1.5", r"batch_size=1.5 must be a whole number from 1 on"),
        ("seed=x", r"seed=x must be a whole number from 0 on"),
        ("benchmark.context=x", r"benchmark.context=x must be a whole number"),
        ("benchmark.temperature=-1", r"benchmark.temperature=-1 must be a number from 0 on"),
        ("prompts=p.jsonl run=mine", r"name the run's backbone instead of run="),
        (
            "protocol=lm_eval benchmark=humaneval backbone.path=nowhere",
            r"the harness is not used for benchmark=humaneval",
        ),
        ("experiment=a/b", r"experiment=a/b must be one folder's name"),
        ("run=7", r"run=7 must be a text or null"),
        ("benchmark.shots=-1", r"benchmark.shots=-1 must be a whole number from 0 on"),
        ("+limits=3", r"limits is unknown: there are .*limit, "),
    ],
)
def test_bad_input_is_one_line(place, tmp_path, override, message):
    _, scoring = place
    kept = [item for item in scoring if not (override == "data=embedded" and item.startswith("data"))]
    with pytest.raises(ValueError, match=message) as error:
        composed_score([*([] if "benchmark=" in override else sized("mmlu")), *kept, *override.split()])
    assert "\n" not in str(error.value) and not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("command", "given", "line"),
    [
        ("score", "task=mmlu", "benchmarks are named by benchmark=mmlu"),
        ("score", "task=mmlu,bbh", "benchmarks are named by benchmark=mmlu,bbh"),
        ("score", "task.shots=2", "benchmarks are named by benchmark.shots=2"),
        ("score", "task=alpaca", "task=alpaca is trained on, not scored: use benchmark=bbh, drop, humaneval or mmlu"),
        ("score", "benchmark=mmlu,drop", ""),
        (
            "train",
            "task=mmlu",
            "task=mmlu scores a model and trains none: melora-bench score benchmark=mmlu run=RUN",
        ),
        (
            "train",
            "task=cola,bbh",
            "task=bbh scores a model and trains none: melora-bench score benchmark=bbh run=RUN",
        ),
        ("train", "task=alpaca", ""),
        ("train", "task.metric=f1", ""),
    ],
)
def test_a_benchmark_is_no_task(command, given, line):
    assert misnamed(["seed=1", given], command) == line


@pytest.mark.parametrize(
    ("script", "line"), [("train", "scores a model and trains none"), ("instructeval", "are named by")]
)
def test_a_benchmark_given_as_a_task_is_one_line(script, line, tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / f"{script}.py"), "task=mmlu"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and line in done.stderr and done.stderr.count("\n") == 1


def test_a_benchmark_trains_nothing(place):
    train, _ = place
    with pytest.raises(MissingConfigException, match="Could not find 'task/mmlu'"):
        run_point([*train, "task=mmlu", "method=lora"])
