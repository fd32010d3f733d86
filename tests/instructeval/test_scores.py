"""A scripted model's scores against hand-computed ones, what is stored, and resuming."""

import dataclasses
import gzip
import json

import pytest
from instruct_fakes import BENCHMARKS, ScriptedModel, benchmark, byte_tokenizer, write_hub, write_original

from melora_bench.instructeval.base import Question
from melora_bench.instructeval.evaluation import Asking, evaluate
from melora_bench.instructeval.summary import summarise

SCRIPT = {
    # MMLU: colours 1 of 1; toy_zoology: right, wrong case, right letter after something else
    "D. grey\nAnswer:": " B\n",
    "C. NA\nD. hen\nAnswer:": "A.",
    "D. 1.50\nAnswer:": " c",
    "D. cock\nAnswer:": "(D",
    # BBH: "None" counts as "No"; negation: right with a rest, wrong
    "Is 5 even?\nAnswer:": " None",
    "not not True is\nAnswer:": " True\n\nnot not",
    "not ( True ) is\nAnswer:": " True",
    # DROP: "20" counts as "2"; right; another case
    "How many horns?\nAnswer:": " 20",
    "How many lambs?\nAnswer:": " 1",
    "How old is the kid?\nAnswer:": " 3 Weeks",
    # HumanEval: right with a rest that is cut; right, in two parts that the cut separates
    'Return x plus 1."""\n': "   return x + 1\n\nprint(more(1) / 0)",
    'Return x minus 1."""\n': "    y = x - 1\n\n    return y\n",
}


def execute(program: str) -> bool:
    try:
        exec(program, {})
    except Exception:
        return False
    return True


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    return write_hub(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def run(hub, tmp_path):
    """run(name, ...) -> (evaluation, model): evaluate the scripted model on the made-up questions."""

    def check(name: str, *, fields: dict | None = None, script=SCRIPT, root=hub, identity="scripted", **options):
        model, made = ScriptedModel(script), benchmark(name, **(fields or {}))
        options = {"batch_size": 2, "execute": execute, "limit": None, "seed": 0} | options
        asking = Asking(folder=tmp_path / "out", identity={"model": identity}, **options)
        return evaluate(made, made.read(root), model, byte_tokenizer(), asking), model

    check.folder = tmp_path / "out"
    return check


def numbers(evaluation) -> tuple:
    summary = evaluation.summary
    return summary.questions, summary.score, summary.exact, summary.ceiling


def stored(path) -> list[dict]:
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in file]


# ---- scores


def test_mmlu_is_the_mean_over_questions(run):
    result, _ = run("mmlu")
    assert result.summary.subjects == {
        "colours": {"questions": 1, "score": 100.0, "exact": 100.0},
        "toy_zoology": {"questions": 3, "score": pytest.approx(100 / 3), "exact": 0.0},
    }
    assert numbers(result) == (4, 50.0, 25.0, None)


def test_bbh_is_the_mean_over_tasks_and_none_counts_as_no(run):
    result, _ = run("bbh")
    assert result.summary.subjects == {
        "answers": {"questions": 1, "score": 100.0, "exact": 0.0},
        "negation": {"questions": 2, "score": 50.0, "exact": 50.0},
    }
    assert numbers(result) == (3, 75.0, 25.0, None)


def test_drop_is_the_mean_and_20_counts_as_2(run):
    result, _ = run("drop")
    assert numbers(result) == (3, pytest.approx(200 / 3), pytest.approx(100 / 3), None)


def test_local_drop_is_scored_as_the_hubs(run, tmp_path):
    result, _ = run("drop", root=write_original(tmp_path / "data"), script={"Answer:": " 2"})
    assert result.summary.score == pytest.approx(100 / 3)


def test_humaneval_is_pass_at_1_with_the_ceiling_that_the_cut_leaves(run):
    result, _ = run("humaneval")
    assert numbers(result) == (2, 50.0, None, 50.0)
    assert result.summary.tampering == 0


@pytest.mark.parametrize(
    ("average", "score", "halves"),
    # Scores of the rows in order: 1, 0, 0 of one subject, 1 of another; the halves have rows 0 and 2, and 1 and 3.
    [("micro", 50.0, [50.0, 50.0]), ("macro", (100 / 3 + 100) / 2, [50.0, 50.0])],
)
def test_halves_are_every_other_question_over_the_subjects(average, score, halves):
    rows = {"a": [{"score": value, "shots": 5} for value in (True, False, False)], "b": [{"score": True, "shots": 4}]}
    summary = summarise(average, rows)
    assert (summary.score, summary.halves) == (pytest.approx(score), halves)
    assert (summary.exact, summary.ceiling, summary.tampering, summary.shots) == (None, None, None, {"5": 3, "4": 1})
    assert summarise(average, {"b": rows["b"]}).halves == [100.0, 100.0]


@pytest.mark.parametrize(
    ("output", "target", "score", "exact"),
    [
        ("No", "No", True, True),
        (" \n No\n", "No", True, True),
        ("None", "No", True, False),
        ("no", "No", False, False),
        ("10", "1", True, False),
        ("(A) then more", "(A)", True, False),
        ("True\n\nnot False is", "True", True, True),
        ("The answer is No", "No", False, False),
        ("", "No", False, False),
        ("] ) }", "] )", True, False),
        ("No", "No ", False, True),  # the protocol does not strip this target; exact match strips both
    ],
)
def test_prefix_match_and_exact_match_of_one_output(output, target, score, exact):
    question = Question(text="", target=target)
    for name in ("mmlu", "bbh", "drop"):
        assert benchmark(name).score(question, output, execute) == {"score": score, "exact": exact}


# ---- what is stored


def test_every_prompt_output_target_and_score_is_stored(run):
    run("bbh", seed=3)
    header, *rows = stored(run.folder / "bbh" / "negation.jsonl.gz")
    sha256 = header.pop("sha256")
    assert len(sha256) == 64
    assert header == {
        "benchmark": "bbh",
        "subject": "negation",
        "version": 1,
        "max_new_tokens": 32,
        "identity": {"model": "scripted"},
    }
    assert rows[1] == {
        "prompt": "not True is\nAnswer: False\n\nnot False is\nAnswer: True\n\nnot ( True ) is\nAnswer:",
        "target": "False",
        "shots": 2,
        "tokens": 78,  # bytes, and BOS
        "output": " True",
        "score": False,
        "exact": False,
    }
    assert sorted(path.name for path in run.folder.rglob("*.gz")) == ["answers.jsonl.gz", "negation.jsonl.gz"]


def test_the_result_counts_shots_and_names_the_examples_whatever_the_shots(run, tmp_path):
    full, _ = run("mmlu")
    assert full.summary.shots == {"2": 4}
    run.folder.rename(tmp_path / "first")
    # colours: 76 + 47 + 51 + 45 bytes and BOS; toy_zoology: 80 + 56 + 60 + 52, 52 or 53 bytes and BOS
    tight, model = run("mmlu", fields={"context": 189})
    assert tight.summary.shots == {"1": 3, "0": 1}
    assert sorted(len(prompt) + 1 for prompt in model.seen) == [134, 169, 189, 189]
    assert tight.examples_sha256 == full.examples_sha256
    run.folder.rename(tmp_path / "second")
    assert run("mmlu", fields={"shots": 1})[0].examples_sha256 != full.examples_sha256


def test_a_limit_asks_and_scores_a_slice(run):
    result, model = run("mmlu", limit=2)
    assert len(model.seen) == result.asked == 2
    assert numbers(result) == (2, 100.0, 50.0, None)


def test_the_seed_is_part_of_a_sampled_runs_header_only(run):
    run("humaneval", seed=3)
    header = stored(run.folder / "humaneval" / "humaneval.jsonl.gz")[0]
    assert (header["temperature"], header["seed"]) == (0.1, 3)
    with pytest.raises(ValueError, match=r"humaneval\.jsonl\.gz holds the outputs of another run \(seed=3\)"):
        run("humaneval", seed=4)


# ---- resuming


def test_a_killed_run_goes_on_with_the_next_subject_and_ends_equal(run, tmp_path, monkeypatch):
    whole, _ = run("bbh")
    whole_files = {path.name: path.read_bytes() for path in run.folder.rglob("*.gz")}
    assert all(content[4:8] == bytes(4) for content in whole_files.values())  # no time in a gzip header
    run.folder.rename(tmp_path / "whole")

    broken = {key: text for key, text in SCRIPT.items() if not key.startswith("not")}
    with pytest.raises(StopIteration):  # the model dies in the second subject
        run("bbh", script=broken)
    assert [path.name for path in run.folder.rglob("*") if path.is_file()] == ["answers.jsonl.gz"]
    result, model = run("bbh")
    assert len(model.seen) == 2
    assert all(prompt.endswith(("not not True is\nAnswer:", "not ( True ) is\nAnswer:")) for prompt in model.seen)
    assert (whole.asked, result.asked) == (3, 2)
    assert result == dataclasses.replace(whole, asked=2, seconds=result.seconds)
    assert {path.name: path.read_bytes() for path in run.folder.rglob("*.gz")} == whole_files

    again, model = run("bbh", batch_size=7)
    assert model.seen == []
    assert again == dataclasses.replace(whole, asked=0, seconds=again.seconds)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"identity": "other"}, r'identity=\{"model":"scripted"\}'),
        ({"fields": {"version": 2}}, "version=1"),
        ({"fields": {"max_new_tokens": 3}}, "max_new_tokens=32"),
        ({"fields": {"context": 60}}, "other prompts or targets"),
        ({"limit": 2}, "other prompts or targets"),
    ],
)
def test_outputs_of_another_run_are_neither_used_nor_overwritten(run, change, what):
    run("bbh")
    before = {path: path.read_bytes() for path in run.folder.rglob("*.gz")}
    with pytest.raises(
        ValueError, match=rf"negation\.jsonl\.gz holds .* \({what}\): give another folder|{what}"
    ) as caught:
        run("bbh", **change)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in run.folder.rglob("*.gz")} == before


def test_a_stored_file_that_was_cut_off_is_named(run):
    run("bbh")
    path = run.folder / "bbh" / "negation.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"negation\.jsonl\.gz cannot be read as jsonl .*is the file complete\?$"):
        run("bbh")


# ---- refused before anything is run


def test_a_limit_below_one_is_refused(run):
    with pytest.raises(ValueError, match=r"^limit=0 leaves no question: give a number above 0, or null for all$"):
        run("mmlu", limit=0)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_prompt_too_long_for_the_model_at_no_shots_is_refused_at_once(run, name, hub, tmp_path):
    made = benchmark(name, context=1)
    model = ScriptedModel(SCRIPT, positions=made.max_new_tokens + 20)
    asking = Asking(folder=tmp_path / "x", identity={}, limit=None, batch_size=8, seed=0, execute=execute)
    with pytest.raises(
        ValueError, match=rf"^the longest prompt has \d+ tokens and {made.max_new_tokens} are to be writ"
    ):
        evaluate(made, made.read(hub), model, byte_tokenizer(), asking)
    assert model.seen == []
    assert not (tmp_path / "x").exists()
