"""Every mistake in a benchmark's files ends in one line that names the file and what is wrong."""

import sys
from types import ModuleType, SimpleNamespace

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from instruct_fakes import (
    BENCHMARKS,
    DROP_ROWS,
    HUMANEVAL_ROWS,
    benchmark,
    parquet,
    write_gz,
    write_hub,
    write_original,
)

from melora_bench.instructeval.harness import harness_scores


@pytest.fixture
def original(tmp_path):
    return write_original(tmp_path / "original")


@pytest.fixture
def hub(tmp_path):
    return write_hub(tmp_path / "hub")


def refused(pattern: str, name: str, root, **fields) -> None:
    with pytest.raises(ValueError, match=pattern) as caught:
        benchmark(name, **fields).read(root)
    assert "\n" not in str(caught.value)


# ---- folders


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_missing_or_empty_folder(name, tmp_path):
    refused(rf" has no folder {name}/ with the files of ", name, tmp_path)
    (tmp_path / name).mkdir()
    refused(rf"{name} has no ", name, tmp_path)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_an_unreachable_hub(name, monkeypatch):
    def download(*_, **__):
        raise LocalEntryNotFoundError("not in the cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    refused(r"^cannot fetch \S+ at '.*' from the hub \(not in the cache\); offline, give a folder", name, None)


def test_a_folder_with_another_number_of_subjects(original, hub):
    (original / "mmlu/test/colours_test.csv").unlink()
    refused(r"mmlu has 1 of the 2 subjects of MMLU", "mmlu", original)
    refused(r"bbh has 2 of the 27 subjects of BBH", "bbh", hub, subjects=27)


def test_an_average_of_another_name(original):
    refused(r"^bbh: average='mean' must be micro or macro$", "bbh", original, average="mean")


# ---- MMLU


def mmlu_file(root, text: str, split: str = "test") -> None:
    (root / "mmlu" / split / f"colours_{split}.csv").write_text(text)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        (
            "question,A,B,C,D,answer\nSnow?,a,b,c,d,B\n",
            r"row 0: the answer is 'answer', .*: these files have no header line",
        ),
        ("Snow?,a,b,c,d,B\nSea?,a,b,c,B\n", r"colours_test\.csv: row 1 has 3 choices, not four"),
        ("Snow?,a,b,c,d,e,B\n", r"row 0 has 5 choices"),
        ("Snow?,a,b,c,d,b\n", r"row 0: the answer is 'b', not A, B, C or D"),
        ("", r"colours has no question to score: is the file complete\?"),
    ],
)
def test_mmlu_files_that_are_not_headerless_rows_of_six(original, text, pattern):
    mmlu_file(original, text)
    refused(pattern, "mmlu", original)


def test_mmlu_files_with_empty_lines_and_a_byte_order_mark(original):
    mmlu_file(original, "\ufeffSnow?,a,b,c,d,B\n\nSea?,a,b,c,d,A\n\n")
    [colours] = [subject for subject in benchmark("mmlu").read(original).subjects if subject.name == "colours"]
    assert [question.text.partition("\n")[0] for question in colours.questions] == ["Snow?", "Sea?"]


def test_mmlu_without_enough_dev_rows(original):
    mmlu_file(original, "Sky?,a,b,c,d,B\n", "dev")
    refused(r"colours has 1 of the 2 rows that are shots", "mmlu", original)
    (original / "mmlu/dev/colours_dev.csv").unlink()
    refused(r"has no dev/colours_dev\.csv, which holds the shots of colours", "mmlu", original)


def test_mmlu_in_another_encoding(original):
    (original / "mmlu/test/colours_test.csv").write_bytes(b"Caf\xe9?,a,b,c,d,B\n")
    refused(r"colours_test\.csv cannot be read as csv \(.*utf-8", "mmlu", original)


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ({"choices": ["a", "b", "c"]}, r"row 0 of test has 3 choices"),
        ({"choices": ["a", "b", None, "d"]}, r"row 0 of test: a choice is not a text"),
        ({"answer": 4}, r"row 0 of test: answer is 4, not 0 to 3"),
        ({"answer": -1}, r"row 0 of test: answer is -1, not 0 to 3"),
        ({"question": None}, r"row 0 of test: question is None, not a text"),
    ],
)
def test_mmlu_rows_of_the_hub_that_are_malformed(hub, change, pattern):
    row = {"question": "Q", "subject": "colours", "choices": ["a", "b", "c", "d"], "answer": 1} | change
    schema = pa.schema(
        [
            ("question", pa.string()),
            ("subject", pa.string()),
            ("choices", pa.list_(pa.string())),
            ("answer", pa.int64()),
        ]
    )
    pq.write_table(pa.Table.from_pylist([row], schema), hub / "mmlu/all/test-00000-of-00001.parquet")
    refused(pattern, "mmlu", hub)


# ---- parquet


def test_parquet_files_that_are_cut_off_missing_or_of_other_columns(hub):
    path = hub / "bbh/answers/test-00000-of-00001.parquet"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    refused(
        r"answers/test-00000-of-00001\.parquet cannot be read as parquet \(.*\): is the file complete\?", "bbh", hub
    )
    parquet(path, [{"input": "a", "answer": "b"}])
    refused(r"test-00000-of-00001\.parquet has no column 'target'; it has 'input', 'answer'", "bbh", hub)
    path.write_bytes(content)
    path.rename(path.with_name("test-00000-of-00002.parquet"))
    refused(r"has 1 of 2 files answers/test-\*\.parquet", "bbh", hub)
    (hub / "mmlu/all/dev-00000-of-00001.parquet").unlink()
    refused(r"has no all/dev-\*\.parquet", "mmlu", hub)


# ---- BBH


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ('{"examples": [', r"answers\.json cannot be read as json \(.*\): is the file complete\?"),
        ("[]", r"answers\.json has no list 'examples'"),
        ('{"examples": {}}', r"answers\.json has no list 'examples'"),
        ('{"examples": [{"input": "a", "target": "b"}, {"input": "c"}]}', r"json: row 1: target is None, not a text"),
        ('{"examples": ["a"]}', r"answers\.json: row 0: input is 'a', not a text"),
        ('{"examples": []}', r"answers has 0 of the 2 rows that are shots"),
        (
            '{"examples": [{"input": "a", "target": "b"}, {"input": "a", "target": "b"}]}',
            r"answers has no question to sco",
        ),
    ],
)
def test_bbh_files_of_another_form(original, text, pattern):
    (original / "bbh/bbh/answers.json").write_text(text)
    refused(pattern, "bbh", original)


# ---- DROP


def test_drop_with_too_few_rows_to_draw_from(hub, original):
    refused(r"has 6 rows with a single answer, too few for 6 shots", "drop", hub, shots=6)
    write_gz(original / "drop/drop_v0_dev.jsonl.gz", [])
    refused(r"drop_v0_dev\.jsonl\.gz has 0 rows with a single answer, too few for 2 shots", "drop", original)


@pytest.mark.parametrize(
    "context", ["The ram.\nQuestion: a?\nAnswer:", "Passage: a\nAnswer:", "Passage: a\nQuestion: b?"]
)
def test_local_drop_rows_of_another_form(original, context):
    write_gz(original / "drop/drop_v0_dev.jsonl.gz", [{"context": context, "ref_text": "1"}])
    refused(r"jsonl\.gz: row 0: context is not 'Passage: '\.\.\.", "drop", original)


def test_hub_drop_rows_without_spans(hub):
    path = hub / "drop/data/validation-00000-of-00001.parquet"
    parquet(path, [{"passage": "p", "question": "q", "answers_spans": {"types": ["span"]}}])
    refused(r"row 0: answers_spans is .*, without a list of spans", "drop", hub)
    parquet(path, [{"passage": None, "question": "q", "answers_spans": {"spans": ["1"]}}])
    refused(r"row 0: passage is None, not a text", "drop", hub)
    assert DROP_ROWS


# ---- gzipped lines


def test_gzipped_files_that_are_cut_off_not_gzipped_or_not_json(original):
    path = original / "humaneval/HumanEval.jsonl.gz"
    content = path.read_bytes()
    for bad in (content[:-12], b'{"task_id": "a"}\n', b"\x1f\x8b" + b"nothing at all" * 3):
        path.write_bytes(bad)
        refused(r"HumanEval\.jsonl\.gz cannot be read as jsonl \(.*\): is the file complete\?", "humaneval", original)
    write_gz(path, [HUMANEVAL_ROWS[0], {"task_id": "Toy/1"}])
    refused(r"jsonl\.gz: row 1: prompt is None, not a text", "humaneval", original)
    import gzip

    path.write_bytes(gzip.compress(b'{"task_id": '))
    refused(r"HumanEval\.jsonl\.gz cannot be read as jsonl \(in line 1: ", "humaneval", original)
    path.write_bytes(gzip.compress(b""))
    refused(r"humaneval has no question to score", "humaneval", original)


def test_humaneval_has_no_shots_to_give(original):
    refused(r"humaneval has 0 of the 3 rows that are shots", "humaneval", original, shots=3)


# ---- the harness


def test_the_harness_knows_three_benchmarks():
    with pytest.raises(
        ValueError, match=r"^the harness is not used for benchmark=humaneval: choose one of mmlu, bbh, drop$"
    ):
        harness_scores(None, None, "humaneval")


def test_a_missing_harness(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ValueError, match=r"^protocol=lm_eval needs the harness \(.*lm_eval.*\): pip install -e"):
        harness_scores(None, None, "mmlu")


@pytest.fixture
def fake_harness(monkeypatch):
    """A stand-in with the calls that lm_eval 0.4.13 has; keeps what it was asked."""
    asked = {}

    class TaskManager:
        def load(self, tasks):
            asked["loaded"] = tasks
            if error := asked.get("error"):
                raise error

    def simple_evaluate(**options):
        asked.update(options)
        return {"results": {"mmlu": {"acc,none": 0.25}}, "versions": {"mmlu": 2}, "samples": []}

    modules = {
        "lm_eval": {"simple_evaluate": simple_evaluate, "__version__": "0.4.13"},
        "lm_eval.models": {},
        "lm_eval.models.huggingface": {"HFLM": lambda **options: SimpleNamespace(**options)},
        "lm_eval.tasks": {"TaskManager": TaskManager},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return asked


@pytest.mark.parametrize(
    ("name", "task", "shots"), [("mmlu", "mmlu", 5), ("bbh", "bbh_fewshot", 3), ("drop", "drop", 3)]
)
def test_the_harness_runs_its_own_task_on_the_loaded_model(fake_harness, name, task, shots):
    found = harness_scores("model", "tokenizer", name, limit_per_task=2, batch_size=4)
    assert found == {"engine": "lm_eval 0.4.13", "results": {"mmlu": {"acc,none": 0.25}}, "versions": {"mmlu": 2}}
    assert fake_harness["tasks"] == fake_harness["loaded"] == [task]
    assert (fake_harness["num_fewshot"], fake_harness["limit"]) == (shots, 2)
    made = {"pretrained": "model", "tokenizer": "tokenizer", "batch_size": 4, "mixed_precision_dtype": None}
    assert vars(fake_harness["model"]) == made


def test_harness_datasets_that_cannot_be_had(fake_harness):
    fake_harness["error"] = ConnectionError("Couldn't reach 'EleutherAI/drop' on the Hub\nmore")
    with pytest.raises(
        ValueError, match=r"^the harness cannot get the datasets of its task drop \(Couldn't .* Hub\): "
    ) as e:
        harness_scores(None, None, "drop")
    assert "\n" not in str(e.value)
    assert "tasks" not in fake_harness
