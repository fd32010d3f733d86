"""`melora-bench sweep`: which commands follow one another, with which arguments, and the exit code of all of them."""

import pytest

from melora_bench import cli
from melora_bench.commands import score, sweep, tables, train
from melora_bench.grids.tables import load_table

FOUR = "benchmark=mmlu,drop,humaneval,bbh"
AS_TRAINED = ["backbone=llama2_7b", "backbone.dtype=bfloat16", "precision=bf16"]


@pytest.fixture
def called(monkeypatch):
    """called(*line): (exit code, [(command, its arguments)]); `codes` has the exit codes of commands, 0 by default."""

    def call(*line: str, **codes) -> tuple[int, list[tuple[str, list[str]]]]:
        calls: list[tuple[str, list[str]]] = []
        for module in (train, score, tables):
            name = module.__name__.rpartition(".")[2]

            def answer(arguments: list[str], name: str = name) -> int:
                calls.append((name, arguments))
                code = codes.get(name, 0)
                code = code.pop(0) if isinstance(code, list) else code
                if code == 130:
                    raise KeyboardInterrupt
                return code

            monkeypatch.setattr(module, "main", answer)
        try:
            return cli.main(["sweep", *line]), calls
        except SystemExit as end:
            return int(str(end.code)), calls

    return call


def test_a_grid_is_trained_and_its_table_written(called):
    code, calls = called("mplora_table2", "task=mrpc", "results_dir=/a b")
    settings = ["task=mrpc", "results_dir=/a b"]
    assert code == 0
    assert calls == [("train", ["-m", "table=mplora_table2", *settings]), ("tables", ["mplora_table2", *settings])]


@pytest.mark.parametrize(
    ("codes", "code", "count"),
    [
        ({"train": [1, 0]}, 1, 4),
        ({"train": [0, 1]}, 1, 4),
        ({"train": [3, 0]}, 0, 3),
        ({"train": [3, 1]}, 1, 3),
        ({"train": [3, 3]}, 3, 2),
        ({"train": [2, 0]}, 2, 1),
        ({"train": [130, 0]}, 130, 1),
        ({"train": [0, 130]}, 130, 3),
        ({"tables": [1, 0]}, 1, 4),
    ],
)
def test_several_tables_end_with_one_code(called, codes, code, count):
    """A failed point stops nothing and its table is written; a slip and Ctrl-C stop everything."""
    found, calls = called("melora_table2", "mplora_table2", **codes)
    assert (found, len(calls)) == (code, count)


def test_ctrl_c_says_that_the_command_goes_on(called, capsys):
    assert called("melora_table2", train=130)[0] == 130
    assert capsys.readouterr().err == "interrupted: the same command goes on from the last checkpoint\n"


def test_a_table_of_scores_is_trained_scored_and_written(called):
    code, calls = called("melora_table3", "seeds=[1]", "--", "limit=8", "results_dir=/r")
    given = ["experiment=melora_table3", "limit=8", "results_dir=/r"]
    assert code == 0
    assert calls == [
        ("train", ["-m", "table=melora_table3", "seeds=[1]"]),
        ("score", ["-m", FOUR, *given]),
        ("score", ["-m", FOUR, "run=melora_table3", *given]),
        ("tables", ["melora_table3", *given]),
    ]


@pytest.mark.parametrize(
    ("failing", "count"), [({"train": 1}, 4), ({"score": 1}, 4), ({"score": 130}, 2), ({"train": 3}, 1)]
)
def test_scoring_goes_on_after_a_failure_and_stops_at_ctrl_c(called, failing, count):
    code, calls = called("melora_table3", **failing)
    assert (code, len(calls)) == (next(iter(failing.values())), count)


def test_a_trials_models_are_scored_under_its_own_name(called):
    _, calls = called("melora_table3", "epochs=1")
    assert {
        argument for _, arguments in calls for argument in arguments if argument.startswith(("experiment=", "run="))
    } == {
        "experiment=melora_table3-epochs-1",
        "run=melora_table3-epochs-1",
    }


def test_a_table_without_an_untrained_row_does_not_score_the_backbone(called):
    scored = [arguments for name, arguments in called("melora_table5")[1] if name == "score"]
    assert len(scored) == 1 and "run=melora_table5" in scored[0]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], AS_TRAINED),
        (["seeds=[0]", "results_dir=/r"], [*AS_TRAINED, "results_dir=/r"]),
        (["precision=fp16", "backbone.dtype=float16"], [AS_TRAINED[0], "precision=fp16", "backbone.dtype=float16"]),
        (["backbone=smollm2", "precision=no"], ["backbone=smollm2", "precision=no"]),
    ],
)
def test_without_settings_models_are_scored_as_they_are_trained(overrides, expected):
    assert sweep.as_trained("melora_table3", load_table("melora_table3"), overrides) == expected


@pytest.mark.slow
def test_two_grids_in_one_process_with_a_point_that_fails(tiny_overrides, tmp_path, capsys):
    """CoLA's data is missing: MRPC is trained all the same, for both tables, and both tables are written."""
    kept = [item for item in tiny_overrides if not item.startswith(("task=", "epochs="))]
    short = ["epochs=1", "max_length=32", "max_train_rows=32", "max_eval_rows=16", "seeds=[0]"]
    names = ["small_glue", "mplora_table2"]
    assert cli.main(["sweep", *names, *kept, *short, "task=cola,mrpc", "method=lora"]) == 1
    out, err = capsys.readouterr()
    assert err.count("1 of 2 points failed") == 2 and "Traceback" not in err
    assert out.count("\nwrote ") == 2 and out.count("\n| LoRA r=8 | ") >= 2
    assert [path.parent.name for path in (tmp_path / "results" / "runs").rglob("*.json")] == ["mrpc"] * 2
    failed = cli.main(["status", "mplora_table2", *kept, *short, "task=cola", "method=lora"])
    out = capsys.readouterr().out
    assert failed == 0 and "cola lora" in out and "failed: data.root=" in out and "1 failed, 0 missing" in out
