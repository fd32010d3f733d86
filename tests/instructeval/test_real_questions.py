"""The real files load: subjects and rows as published, and what is known of them. Skipped without them."""

from collections import Counter

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from melora_bench.files import ROOT


@pytest.fixture
def load(real_data):
    def loaded(name: str, **fields):
        root = real_data / "instruct"
        if not (root / name).is_dir():
            pytest.skip(f"needs the real {name} files: MELORA_BENCH_DATA has no instruct/{name}")
        config = OmegaConf.load(ROOT / "configs" / "benchmark" / f"{name}.yaml")
        made = instantiate(OmegaConf.merge(config, fields))
        return made, made.read(root).subjects, made.read(root).origin

    return loaded


def test_mmlu_has_57_subjects_and_14042_questions_ten_of_them_with_a_choice_none(load):
    made, subjects, _ = load("mmlu")
    assert len(subjects) == 57
    assert sum(len(subject.questions) for subject in subjects) == 14042
    assert {q.target for s in subjects for q in s.questions} == set("ABCD")
    none = [s.name for s in subjects for q in s.questions if any(line[3:] == "None" for line in q.text.split("\n"))]
    assert Counter(none) == {
        "electrical_engineering": 4,
        "college_mathematics": 3,
        "college_computer_science": 2,
        "college_physics": 1,
    }
    prompt = made.prompt(subjects[0], subjects[0].questions[0]).text
    start = "The following are multiple choice questions (with answers) about  abstract algebra.\n\n"
    assert prompt.startswith(start)
    assert prompt.count("\nAnswer: ") == 5
    assert not any(made.prompt(s, q).text.endswith(" ") for s in subjects for q in s.questions)


def test_bbh_has_27_tasks_and_6511_rows_less_three_shots_each(load):
    made, subjects, _ = load("bbh")
    assert len(subjects) == 27
    assert sum(len(subject.questions) for subject in subjects) == 6511 - 81
    for subject in subjects:
        assert all(q.target == q.target.strip() != "" and "\n" not in q.target for q in subject.questions)
        assert made.prompt(subject, subject.questions[0]).text.count("\nAnswer: ") >= 3


def test_local_drop_has_5743_questions_outside_the_shots_passages(load):
    _, [subject], origin = load("drop")
    assert origin["label"] == "local DROP"
    assert len(subject.questions) == 5743
    assert not any(" and " in q.target or "|" in q.target or not q.target for q in subject.questions)
    assert len(load("drop", shots=0)[1][0].questions) == 5780  # rows with a single answer
    passages = [shot.rpartition("\nAnswer:")[0][:200] for shot in subject.shots]
    assert not any(q.text.startswith(passage) for q in subject.questions for passage in passages)


def test_humaneval_has_164_problems(load):
    _, [subject], _ = load("humaneval")
    assert len(subject.questions) == 164
    assert [q.details["task_id"] for q in subject.questions] == [f"HumanEval/{number}" for number in range(164)]
    assert not any(q.text.endswith(" ") for q in subject.questions)
