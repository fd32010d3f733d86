"""The exact prompts, which rows are scored, and that every layout of the data gives the same ones."""

import json

import huggingface_hub
import pytest
from instruct_fakes import (
    BENCHMARKS,
    MMLU_ROWS,
    benchmark,
    byte_tokenizer,
    parquet,
    write_gz,
    write_hub,
    write_original,
)

from melora_bench.instructeval.prompts import choose, write_prompts


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_original(tmp_path_factory.mktemp("original"))


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    return write_hub(tmp_path_factory.mktemp("hub"))


def prompts(made, loaded, tokenizer=None) -> dict[str, list[str]]:
    return {s.name: [made.prompt(s, q, tokenizer).text for q in s.questions] for s in loaded.subjects}


# ---- exact prompts


def test_mmlu_has_two_spaces_before_the_subject_and_keeps_none_and_na(original):
    made = benchmark("mmlu")
    loaded = made.read(original)
    assert [subject.name for subject in loaded.subjects] == ["colours", "toy_zoology"]
    assert prompts(made, loaded)["toy_zoology"][0] == (
        "The following are multiple choice questions (with answers) about  toy zoology.\n"
        "\n"
        "Which one barks?\nA. cat\nB. dog\nC. cow\nD. hen\nAnswer: B\n"
        "\n"
        "Which one lays eggs?\nA. cat\nB. dog\nC. cow\nD. hen\nAnswer: D\n"
        "\n"
        "Which one purrs?\nA. cat\nB. None\nC. NA\nD. hen\nAnswer:"
    )
    assert prompts(made, loaded)["toy_zoology"][1].endswith("C. cow\nD. 1.50\nAnswer:")
    assert [q.target for s in loaded.subjects for q in s.questions] == ["B", "A", "C", "D"]


def test_mmlu_takes_the_first_dev_rows_as_shots(original):
    made = benchmark("mmlu", shots=1)
    assert prompts(made, made.read(original))["colours"] == [
        "The following are multiple choice questions (with answers) about  colours.\n\n"
        "Sky?\nA. red\nB. blue\nC. pink\nD. grey\nAnswer: B\n\n"
        "Snow?\nA. red\nB. white\nC. pink\nD. grey\nAnswer:"
    ]


def test_bbh_has_the_tasks_first_rows_as_shots_and_does_not_score_them(original):
    made = benchmark("bbh")
    loaded = made.read(original)
    assert prompts(made, loaded) == {
        "answers": ["Is 2 even?\nAnswer: Yes\n\nIs 3 even?\nAnswer: No\n\nIs 5 even?\nAnswer:"],
        "negation": [
            "not True is\nAnswer: False\n\nnot False is\nAnswer: True\n\nnot not True is\nAnswer:",
            "not True is\nAnswer: False\n\nnot False is\nAnswer: True\n\nnot ( True ) is\nAnswer:",
        ],
    }
    assert [q.target for q in loaded.subjects[1].questions] == ["True", "False"]


def test_drop_flattens_the_spans_draws_its_shots_by_seed_and_leaves_their_passages_out(hub):
    made = benchmark("drop")
    loaded = made.read(hub)
    # Six rows have one distinct stripped answer: 2, 1, 3 weeks, 4, milk, kid. Seed 0 draws "4", then "kid", and "milk"
    # goes with its passage.
    shots = "The ram has 4 legs. How many legs?\nAnswer: 4\n\nThe kid drank milk. Who drank?\nAnswer: kid\n\n"
    assert prompts(made, loaded) == {
        "drop": [
            shots + "The ram has 2 horns. How many horns?\nAnswer:",
            shots + "The ewe has 1 lamb. How many lambs?\nAnswer:",
            shots + "The kid is 3 weeks old. How old is the kid?\nAnswer:",
        ]
    }
    assert [q.target for q in loaded.subjects[0].questions] == ["2", "1", "3 weeks"]
    assert loaded.origin["label"] == "DROP"


def test_the_shots_seed_changes_the_draw(hub):
    drawn = {tuple(benchmark("drop", shots_seed=seed).read(hub).subjects[0].shots) for seed in range(8)}
    assert len(drawn) > 1


def test_humaneval_has_an_instruction_line_and_no_shots(original):
    made = benchmark("humaneval")
    loaded = made.read(original)
    assert prompts(made, loaded)["humaneval"][0] == (
        "Please complete the following Python code without providing any additional tasks such as testing or "
        'explanations\ndef more(x):\n    """Return x plus 1."""\n'
    )


# ---- layouts


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_hubs_two_layouts_and_the_original_files_give_the_same_prompts(name, original, hub, tmp_path):
    made = benchmark(name)
    loaded = made.read(hub)
    converted = made.read(write_hub(tmp_path, converted=True))
    assert converted.subjects == loaded.subjects
    assert made.read(original).subjects == loaded.subjects


def test_the_local_drop_file_is_marked_and_leaves_out_what_cannot_be_told_apart(original):
    origin = benchmark("drop").read(original).origin
    assert origin["label"] == "local DROP"
    assert "not comparable" in origin["rule"]


def test_a_local_drop_answer_with_and_in_it_is_left_out_even_if_it_is_one_span(tmp_path):
    (tmp_path / "drop").mkdir()
    rows = [("one", "1"), ("two", " 2|2 "), ("three", "3|4"), ("four", "Bob and Cid"), ("five", "sand and")]
    write_gz(
        tmp_path / "drop" / "drop_v0_dev.jsonl.gz",
        [{"context": f"Passage: {p}\nQuestion: a\nQuestion: {p}?\nAnswer:", "ref_text": text} for p, text in rows],
    )
    subject = benchmark("drop", shots=0).read(tmp_path).subjects[0]
    # The last "Question:" is the question; " and" at the end of an answer joins nothing.
    assert [(q.text, q.target) for q in subject.questions] == [
        ("one\nQuestion: a one?\nAnswer:", "1"),
        ("two\nQuestion: a two?\nAnswer:", "2"),
        ("five\nQuestion: a five?\nAnswer:", "sand and"),
    ]


def test_the_hub_is_asked_for_what_is_needed_at_the_revision_of_the_config(hub, monkeypatch):
    asked = []

    def download(repo, revision, repo_type, allow_patterns, **_):
        asked.append((repo, revision, repo_type, allow_patterns))
        return str(hub / {"cais/mmlu": "mmlu", "lukaemon/bbh": "bbh", "ucinlp/drop": "drop"}.get(repo, "humaneval"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    for name in BENCHMARKS:
        made = benchmark(name)
        loaded = made.read()
        assert loaded.subjects == made.read(hub).subjects
        assert loaded.origin == made.read(hub).origin | {"repo": made.repo, "commit": name}
    assert asked == [
        ("cais/mmlu", "main", "dataset", ["all/dev*", "all/test*"]),
        ("lukaemon/bbh", "refs/convert/parquet", "dataset", ["*/test*"]),
        ("ucinlp/drop", "main", "dataset", ["*/validation*"]),
        ("openai/openai_humaneval", "main", "dataset", ["*/test*"]),
    ]


def test_the_origin_changes_with_the_files(tmp_path):
    root = write_hub(tmp_path)
    before = benchmark("bbh").read(root).origin
    parquet(root / "bbh/answers/test-00000-of-00001.parquet", [{"input": str(i), "target": "x"} for i in range(3)])
    after = benchmark("bbh").read(root).origin
    assert before["files"] == after["files"] == 2
    assert before["sha256"] != after["sha256"]


# ---- shots that do not fit


def test_the_last_shot_is_dropped_while_the_prompt_with_bos_has_too_many_tokens(original):
    loaded = benchmark("mmlu").read(original)
    subject = loaded.subjects[0]
    header, (first, second), question = subject.header, subject.shots, subject.questions[0]
    full = len(header + first + second + question.text) + 1
    cases = {full: 2, full - 1: 1, full - len(second): 1, full - len(second) - 1: 0, 1: 0}
    for context, left in cases.items():
        prompt = benchmark("mmlu", context=context).prompt(subject, question, byte_tokenizer())
        assert prompt.shots == left
        assert prompt.text == header + "".join([first, second][:left]) + question.text  # the header stays
        assert prompt.tokens == len(prompt.text) + 1


def test_without_a_tokenizer_no_shot_is_dropped(original):
    made = benchmark("mmlu", context=1)
    subject = made.read(original).subjects[0]
    prompt = made.prompt(subject, subject.questions[0])
    assert (prompt.shots, prompt.tokens) == (2, None)


# ---- slices


def test_a_limit_is_dealt_out_over_the_subjects_in_order(original):
    loaded = benchmark("mmlu").read(original)  # colours has 1 question, toy_zoology 3

    def counts(limit):
        return {name: len(questions) for name, questions in choose(loaded, limit).items()}

    assert counts(None) == {"colours": 1, "toy_zoology": 3} == counts(4) == counts(99)
    assert counts(1) == {"colours": 1}
    assert counts(2) == {"colours": 1, "toy_zoology": 1}
    assert counts(3) == {"colours": 1, "toy_zoology": 2}
    assert choose(loaded, 3)["toy_zoology"] == loaded.subjects[1].questions[:2]


def test_prompts_are_written_without_a_model(original, tmp_path, caplog):
    made = benchmark("mmlu")
    loaded = made.read(original)
    caplog.set_level("INFO")
    assert write_prompts(made, loaded, tmp_path / "a.jsonl", limit=3, tokenizer=None) == 3
    assert "no shot is dropped" in caplog.text
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row["subject"] for row in rows] == ["colours", "toy_zoology", "toy_zoology"]
    assert [row["prompt"] for row in rows[1:]] == prompts(made, loaded)["toy_zoology"][:2]
    assert [row["target"] for row in rows] == ["B", "A", "C"]
    assert {row["tokens"] for row in rows} == {None}
    tight = benchmark("mmlu", context=200)
    assert write_prompts(tight, loaded, tmp_path / "b.jsonl", limit=None, tokenizer=byte_tokenizer()) == 4
    rows = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    assert all(row["tokens"] == len(row["prompt"]) + 1 <= 200 and row["shots"] < 2 for row in rows)


def test_a_subject_spelt_with_spaces_in_a_csv_cell_keeps_its_quotes_and_newlines(tmp_path):
    root = write_original(tmp_path)
    question = 'He said "no",\nthen left. '
    with (root / "mmlu/test/colours_test.csv").open("w", newline="") as file:
        file.write('"He said ""no"",\nthen left. "," a",b ,c,d,C\n')
    made = benchmark("mmlu")
    loaded = made.read(root)
    assert loaded.subjects[0].questions[0].text == f"{question}\nA.  a\nB. b \nC. c\nD. d\nAnswer:"  # nothing stripped
    assert set(MMLU_ROWS) == {s.name for s in loaded.subjects}
