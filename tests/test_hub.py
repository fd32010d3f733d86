"""Rows and weights by name, from a hub that answers, moves on, fails or is not there (tests/hub_server.py)."""

import hashlib
import io
import json
import multiprocessing
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import hub_client
import instruct_fakes
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import transformers
from hub_server import Hub

from melora_bench.files import ROOT
from melora_bench.models.base import FILES
from melora_bench.records import records

GLUE, ROBERTA = "nyu-mll/glue", "FacebookAI/roberta-base"
TEXTS = {
    "mrpc": ("sentence1", "sentence2"),
    "rte": ("sentence1", "sentence2"),
    "stsb": ("sentence1", "sentence2"),
    "cola": ("sentence",),
    "sst2": ("sentence",),
    "qnli": ("question", "sentence"),
    "qqp": ("question1", "question2"),
    "mnli": ("premise", "hypothesis"),
}
# {benchmark: (repository, branch, split that is scored)}
BENCHMARKS = {
    "mmlu": ("cais/mmlu", "main"),
    "bbh": ("lukaemon/bbh", "refs/convert/parquet"),
    "drop": ("ucinlp/drop", "main"),
    "humaneval": ("openai/openai_humaneval", "main"),
}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(scope="module")
def server():
    hub = Hub().start()
    yield hub
    hub.stop()


@pytest.fixture
def hub(server):
    server.clear()
    return server


@pytest.fixture(scope="module")
def environment(server, tmp_path_factory) -> dict[str, str]:
    """Of a process that reads the hub: nothing of the user's, no offline mode, short time limits."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    home = tmp_path_factory.mktemp("home")
    return kept | {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(home),
        "MELORA_BENCH_CACHE": str(home / "melora_bench"),
        "HF_HUB_DOWNLOAD_TIMEOUT": "2",
        "HF_HUB_ETAG_TIMEOUT": "2",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


@pytest.fixture(scope="module")
def worker(environment):
    """client(name, ...): run a function of hub_client in a process with that environment."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment)
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    pool.submit(int).result()  # it has started: with this environment
    os.environ.clear()
    os.environ.update(before)
    yield pool
    pool.shutdown(cancel_futures=True)


@pytest.fixture
def client(worker, tmp_path):
    def call(function, *args, cache: Path = tmp_path / "cache", **options):
        return worker.submit(function, cache, *args, **options).result(timeout=100)

    return call


# ---- what the hub holds


def glue_file(task: str, rows: list[dict], text: pa.DataType) -> bytes:
    """A parquet file with the columns, types and metadata of the hub's copy."""
    names = {"mnli": ["entailment", "neutral", "contradiction"]}.get(task, ["no", "yes"])
    label = {"dtype": "float32", "_type": "Value"} if task == "stsb" else {"names": names, "_type": "ClassLabel"}
    features = {name: {"dtype": str(text), "_type": "Value"} for name in TEXTS[task]} | {"label": label}
    features["idx"] = {"dtype": "int32", "_type": "Value"}
    types = [(name, text) for name in TEXTS[task]]
    types += [("label", pa.float32() if task == "stsb" else pa.int64()), ("idx", pa.int32())]
    schema = pa.schema(types, metadata={"huggingface": json.dumps({"info": {"features": features}})})
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), file)
    return file.getvalue()


def glue_rows(task: str, split: str, count: int = 40) -> list[dict]:
    """Learnable rows: the label says which of two words the first text has. Some texts look like missing values."""
    rows = []
    for number in range(count):
        label = 5 * (number % 2) * 0.75 if task == "stsb" else number % (3 if task == "mnli" else 2)
        label = -1 if split.startswith("test") else label
        word = "good" if number % 2 else "bad"
        texts = [f"the film is {word} {split} {number}" if number else "None", f"NA{number}" if number else "NA"]
        rows.append(dict(zip(TEXTS[task], texts, strict=False)) | {"label": label, "idx": number})
    return rows


def glue_files(task: str, parts: int = 1, text: pa.DataType | None = None, **changed) -> dict[str, bytes]:
    """{path: content} of every split of a task, cut into `parts` files."""
    sets = ("_matched", "_mismatched") if task == "mnli" else ("",)
    files = {}
    for split in ("train", *(f"{kind}{name}" for kind in ("validation", "test") for name in sets)):
        rows = [row | changed for row in glue_rows(task, split)]
        step = len(rows) // parts
        for part in range(parts):
            path = f"{task}/{split}-{part:05d}-of-{parts:05d}.parquet"
            files[path] = glue_file(task, rows[part * step : (part + 1) * step], text or pa.string())
    return files


def readme(*tasks: str) -> bytes:
    """The card that tells the datasets library which files belong together."""
    lines = ["---", "configs:"]
    for task in tasks:
        lines += [f"- config_name: {task}", "  data_files:"]
        for path in glue_files(task):
            split = path.split("/")[1].split("-")[0]
            lines += [f"  - split: {split}", f"    path: {task}/{split}-*"]
    return "\n".join([*lines, "---", ""]).encode()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def roberta(tiny_roberta) -> dict[str, bytes]:
    """The files of a model repository: the checkpoint, and beside it what must not be taken."""
    others = {"pytorch_model.bin": b"not a pickle", "onnx/model.safetensors": b"not a tensor", "onnx/config.json": b"{"}
    return contents(tiny_roberta) | others | {"README.md": b"A model.", ".gitattributes": b""}


# ---- rows


@pytest.mark.parametrize("task", TEXTS)
def test_every_glue_task_in_the_hubs_layout_and_types(hub, client, task):
    files = glue_files(task) | glue_files("cola" if task != "cola" else "rte")
    commit = hub.commit("dataset", GLUE, files)
    rows = client(hub_client.task_rows, task)
    evaluated = ["validation_matched", "validation_mismatched"] if task == "mnli" else ["validation"]
    assert list(rows) == ["train", *evaluated]
    for split, (texts, labels, origin) in rows.items():
        expected = glue_rows(task, split)
        assert texts == [[row[name] for row in expected] for name in TEXTS[task]]
        assert labels == [row["label"] for row in expected]
        path = f"{task}/{split}-00000-of-00001.parquet"
        assert origin == {"rows": 40, "sha256": [sha256(files[path])], "repo": GLUE, "commit": commit}
    assert hub.asked(r"GET .*parquet") == len(rows)  # no test set, no other task
    assert hub.asked(rf"GET .*/{task}/test") == 0

    parts = glue_files(task, parts=2, text=pa.large_string())
    hub.commit("dataset", GLUE, parts)
    again = client(hub_client.task_rows, task)
    assert {split: found[:2] for split, found in again.items()} == {split: found[:2] for split, found in rows.items()}
    sizes = {split: found[2]["sha256"] for split, found in again.items()}
    assert sizes["train"] == [sha256(parts[f"{task}/train-0000{part}-of-00002.parquet"]) for part in (0, 1)]


@pytest.mark.slow
def test_the_datasets_library_reads_the_same_rows(hub, client):
    """Another reader of the same hub: neither the hub of these tests nor our reader is alone with its layout."""
    tasks = ("mrpc", "stsb", "mnli")
    files = {path: content for task in tasks for path, content in glue_files(task, parts=2).items()}
    hub.commit("dataset", GLUE, files | {"README.md": readme(*tasks)})
    for task in tasks:
        loaded = client(hub_client.loaded_by_datasets, GLUE, task)
        for split, (texts, labels, _) in client(hub_client.task_rows, task).items():
            assert texts == [[row[name] for row in loaded[split]] for name in TEXTS[task]]
            assert labels == [row["label"] for row in loaded[split]]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark(hub, client, name, tmp_path):
    repo, branch = BENCHMARKS[name]
    folder = instruct_fakes.write_hub(tmp_path / "files", converted=name == "bbh") / name
    files = contents(folder) | {"README.md": b"", "data/other.csv": b""}
    commit = hub.commit("dataset", repo, files, branch)
    if branch != "main":
        hub.commit("dataset", repo, {"bbh.py": b"raise SystemExit"})  # the loading script, which is not ours to run
    sizes = [f"{key}={value}" for key, value in instruct_fakes.SMALL[name].items()]
    found = client(hub_client.questions, name, *sizes)
    local = instruct_fakes.benchmark(name).read(folder.parent)
    assert found.subjects == local.subjects
    assert found.origin == local.origin | {"repo": repo, "commit": commit}
    assert hub.asked(r"GET .*(csv|README|bbh\.py)") == 0


def test_a_benchmark_in_several_files(hub, client, tmp_path):
    files = contents(instruct_fakes.write_hub(tmp_path / "files") / "humaneval")
    (path,) = files
    table = pq.read_table(io.BytesIO(files.pop(path)))
    for part in range(2):
        file = io.BytesIO()
        pq.write_table(table.slice(part, 1), file)
        files[path.replace("00000-of-00001", f"0000{part}-of-00002")] = file.getvalue()
    hub.commit("dataset", "openai/openai_humaneval", files)
    local = instruct_fakes.benchmark("humaneval").read(tmp_path / "files")
    assert client(hub_client.questions, "humaneval").subjects == local.subjects


def test_instructions(hub, client):
    rows = [{"instruction": f"Add {n}.", "input": "", "output": str(n)} for n in range(20)]
    files = {"alpaca_data_cleaned.json": json.dumps(rows).encode(), "README.md": b"", ".gitattributes": b""}
    commit = hub.commit("dataset", "yahma/alpaca-cleaned", files)
    file = "alpaca_data_cleaned.json"
    assert client(hub_client.instructions) == (rows, {"repo": "yahma/alpaca-cleaned", "commit": commit, "file": file})
    assert hub.asked("GET .*README") == 0


# ---- weights


def test_a_backbone_by_name(hub, client, roberta, tiny_roberta):
    commit = hub.commit("model", ROBERTA, roberta)
    files, origin, total = client(hub_client.weights)
    needed = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    assert files == {name: sha256(roberta[name]) for name in needed}
    digest = sha256(roberta["model.safetensors"])
    assert origin.items() >= {"name": "roberta_base", "repo": ROBERTA, "commit": commit, "sha256": digest}.items()
    assert total == client(hub_client.weights, f"path={tiny_roberta}")[2]
    assert hub.asked(r"GET .*(bin|onnx|README)") == 0


def test_a_backbone_in_several_files(hub, client, roberta, tiny_roberta, tmp_path):
    transformers.AutoModelForMaskedLM.from_pretrained(tiny_roberta).save_pretrained(tmp_path, max_shard_size="20KB")
    parts = {name: content for name, content in contents(tmp_path).items() if "safetensors" in name}
    assert len(parts) > 2 and "model.safetensors.index.json" in parts
    kept = {name: content for name, content in roberta.items() if name != "model.safetensors"}
    hub.commit("model", "someone/parts", kept | parts)
    files, origin, total = client(hub_client.weights, "repo=someone/parts")
    assert {name: digest for name, digest in files.items() if "safetensors" in name} == {
        name: sha256(content) for name, content in parts.items()
    }
    index = "model.safetensors.index.json"
    joined = "".join(sha256(parts[name]) for name in sorted(parts.keys() - {index}))
    assert origin["sha256"] == sha256(joined.encode())
    assert total == pytest.approx(client(hub_client.weights, f"path={tiny_roberta}")[2], rel=1e-12)


def test_a_repository_without_safetensors(hub, client, roberta, tmp_path):
    """A pickle runs code when it is read: it is neither fetched nor used."""
    hub.commit(
        "model", ROBERTA, {name: content for name, content in roberta.items() if "model.safetensors" not in name}
    )
    overrides = [
        "backbone=roberta_base",
        "data=hub",
        "task=mrpc",
        f"results_dir={tmp_path}/r",
        f"output_dir={tmp_path}/o",
    ]
    hub.commit("dataset", GLUE, glue_files("mrpc"))
    line = client(hub_client.trained, overrides)
    assert re.fullmatch(rf"error: {ROBERTA} at 'main' has no \*\.safetensors: .*", line), line
    assert hub.asked("GET .*bin") == 0


def test_chunked_storage(hub, client, roberta):
    """What the public hub has used since 2025: hf_xet fetches chunks from other addresses."""
    hub.chunked = True
    hub.commit("model", ROBERTA, roberta)
    files, _, _ = client(hub_client.weights)
    assert files["model.safetensors"] == sha256(roberta["model.safetensors"])
    assert hub.asked("GET /cas/v1/xorbs") == 1 and hub.asked("GET /lfs") == 0


# ---- revisions


def test_a_branch_a_tag_and_a_commit(hub, client):
    old = hub.commit("dataset", GLUE, {"a.json": b"old"})
    hub.tag("dataset", GLUE, "v1", old)
    assert client(hub_client.fetched, GLUE)[:2] == ({"a.json": sha256(b"old")}, old)
    new = hub.commit("dataset", GLUE, {"a.json": b"new"})
    assert client(hub_client.fetched, GLUE)[:2] == ({"a.json": sha256(b"new")}, new)
    for pinned in (old, "v1"):
        assert client(hub_client.fetched, GLUE, revision=pinned)[:2] == ({"a.json": sha256(b"old")}, old)
    hub.requests.clear()
    assert client(hub_client.fetched, GLUE, revision=old)[1] == old
    assert hub.requests == []  # a commit that is cached cannot have changed


def test_a_branch_that_moves_while_a_task_is_read(hub, client):
    """Every split is of one commit."""
    old = hub.commit("dataset", GLUE, glue_files("mrpc"))
    move = lambda: hub.commit("dataset", GLUE, glue_files("mrpc", sentence2="moved"))  # noqa: E731
    hub.fail("GET .*train", act=move, times=1)
    rows = client(hub_client.task_rows, "mrpc")
    assert {origin["commit"] for _, _, origin in rows.values()} == {old}
    assert "moved" not in rows["validation"][0][1]
    assert "moved" in client(hub_client.task_rows, "mrpc")["validation"][0][1]


@pytest.fixture
def point(tmp_path):
    """point(name): the overrides of a run of a second, whose files lie under `name`."""

    def overrides(name: str, task: str = "mrpc") -> list[str]:
        return [
            "backbone=roberta_base",
            "data=hub",
            f"task={task}",
            "epochs=1",
            "batch_size=8",
            "max_length=32",
            f"results_dir={tmp_path}/{name}/results",
            f"output_dir={tmp_path}/{name}/outputs",
        ]

    return overrides


def scores(record) -> list[dict]:
    return [{key: entry[key] for key in ("step", "train_loss", "metrics")} for entry in record.epochs]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["mrpc", "stsb", "mnli"])
def test_training_says_which_commits_it_read(hub, client, roberta, point, task):
    weights, rows = hub.commit("model", ROBERTA, roberta), hub.commit("dataset", GLUE, glue_files(task))
    record = records.load(client(hub_client.trained, point("one", task))[0])
    assert (record.model["commit"], {origin["commit"] for origin in record.data.values()}) == (weights, {rows})
    if task != "mrpc":
        return
    changed = {"label": 1}
    moved = hub.commit("dataset", GLUE, glue_files(task, **changed))
    again = records.load(client(hub_client.trained, point("two", task))[0])
    assert (again.model["commit"], {origin["commit"] for origin in again.data.values()}) == (weights, {moved})
    assert again.data["train"]["sha256"] != record.data["train"]["sha256"]
    assert again.epochs[0]["metrics"]["accuracy"] == 1.0 and scores(again) != scores(record)


# ---- without the hub


@pytest.mark.slow
@pytest.mark.parametrize("offline", [True, False])
def test_what_was_read_once_is_read_again_without_the_hub(hub, client, roberta, point, offline):
    hub.commit("model", ROBERTA, roberta)
    hub.commit("dataset", GLUE, glue_files("mrpc"))
    online = records.load(client(hub_client.trained, point("online"))[0])
    hub.requests.clear()
    with hub.down():
        without = records.load(client(hub_client.trained, point("without"), offline=offline)[0])
    assert scores(without) == scores(online)
    assert (without.data, without.model) == (online.data, online.model)
    if offline:
        assert hub.requests == []


@pytest.mark.parametrize("offline", [True, False])
def test_without_the_hub_and_without_a_copy(hub, client, point, offline):
    with hub.down():
        line = client(hub_client.trained, point("none"), offline=offline)
    remedy = rf"offline, use backbone\.path=DIR with a copy of {ROBERTA}, or backbone=minilm"
    reason = "HF_HUB_OFFLINE is set, and the cache .* lacks it" if offline else f"no answer from {hub.url}: .*refused"
    assert re.fullmatch(
        rf"error: cannot fetch {ROBERTA} at 'main' from the hub \({reason}\); (try again: .*; )?{remedy}", line
    ), line


@pytest.mark.parametrize("offline", [True, False])
def test_a_part_of_a_copy_is_no_copy(hub, client, offline):
    """Another task of the repository is in the cache."""
    hub.commit("dataset", GLUE, glue_files("mrpc") | glue_files("rte"))
    client(hub_client.task_rows, "mrpc")
    with hub.down(), pytest.raises(ValueError, match=rf"^cannot fetch {GLUE} at 'main' .*offline, use data=local"):
        client(hub_client.task_rows, "rte", offline=offline)


# ---- downloads that break off


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("act", ["cut", "reset"])
def test_a_connection_that_breaks_once(hub, client, act, chunked):
    content = random.Random(0).randbytes(24 << 20)  # the library keeps pieces of 10 MiB
    hub.chunked = chunked
    hub.commit("dataset", GLUE, {"a.parquet": content})
    hub.fail("GET (/lfs|/cas/v1/xorbs)", act=act, times=1)
    assert client(hub_client.fetched, GLUE)[0] == {"a.parquet": sha256(content)}
    if (act, chunked) == ("cut", False):
        assert [request.range for request in hub.requests if "/lfs/" in request.path] == [None, f"bytes={10 << 20}-"]


@pytest.mark.parametrize("act", ["cut", "reset"])
def test_a_connection_that_breaks_always(hub, client, act, tmp_path):
    """One line; what came in part is not there, what came whole is kept, and the next start goes on."""
    source = random.Random(0)
    whole, half = source.randbytes(400_000), source.randbytes(400_000)
    hub.commit("dataset", GLUE, {"a.json": whole, "b.parquet": half})
    hub.fail("GET /lfs", act=act)
    if act == "cut":  # each answer brings half of what is left, so an end needs a server that gives nothing more
        hub.faults.insert(0, hub.faults[0].__class__(r"GET /lfs", 503, times=None))
    line, commit, waits = client(hub_client.fetched, GLUE)
    assert commit is None and re.match(rf"cannot fetch {GLUE} at 'main' from the hub \(", line) and "\n" not in line
    assert sum(wait for wait in waits if wait >= 1) < 30
    cached = contents(tmp_path / "cache")
    assert half not in cached.values() and not any(
        half.startswith(part) for part in cached.values() if len(part) > 1000
    )
    assert not any(name.endswith("b.parquet") for name in cached)
    hub.faults.clear()
    hub.requests.clear()
    assert client(hub_client.fetched, GLUE)[0] == {"a.json": sha256(whole), "b.parquet": sha256(half)}
    assert hub.asked(r"GET .*a\.json") == 0


def test_a_process_that_is_killed_while_it_downloads(hub, client, environment, tmp_path):
    content = random.Random(0).randbytes(24 << 20)
    hub.commit("dataset", GLUE, {"a.parquet": content})
    hub.fail("GET /lfs", act="stall")
    cache = str(tmp_path / "cache")
    code = (
        f"from huggingface_hub import snapshot_download as get; get({GLUE!r}, repo_type='dataset', cache_dir={cache!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size >= 10 << 20 for path in (tmp_path / "cache").rglob("*.incomplete")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    line, commit, _ = client(hub_client.fetched, GLUE, offline=True)
    assert commit is None and "HF_HUB_OFFLINE is set, and the cache" in line
    hub.faults.clear()
    assert client(hub_client.fetched, GLUE)[0] == {"a.parquet": sha256(content)}


# ---- failures in words


def fault(pattern: str, status: int = 200, **options) -> dict:
    """What Hub.fail is to do."""
    return {"pattern": pattern, "status": status, **options}


LOGIN = r"`hf auth login` or set HF_TOKEN"
FAILURES = {
    "gated": (
        fault("resolve|xet-read", 401, code="GatedRepo"),
        r"it is gated \(401\)",
        rf"accept its licence at {{page}}, then {LOGIN}",
    ),
    "not on the list": (
        fault("resolve|xet-read", 403, code="GatedRepo"),
        r"it is gated \(403\)",
        rf"accept its licence at {{page}}, then {LOGIN}",
    ),
    "no repository": (
        fault("/api/", 404, code="RepoNotFound"),
        r"there is no such repository, .*\(404\)",
        rf"check the name at {{page}}, or {LOGIN}",
    ),
    "no login": (
        fault("/api/", 401),
        r"there is no such repository, .*\(401\)",
        rf"check the name at {{page}}, or {LOGIN}",
    ),
    "no permission": (
        fault("/api/", 403),
        r"there is no such repository, .*\(403\)",
        rf"check the name at {{page}}, or {LOGIN}",
    ),
    "no revision": (
        fault("/api/", 404, code="RevisionNotFound"),
        "it has no such revision",
        r"name a branch, a tag or a whole commit of {page}/commits/main",
    ),
    "no file": (
        fault("HEAD .*/resolve", 404, code="EntryNotFound"),
        r"/datasets/\S+/a\.json is not there \(404\)",
        "name another revision, or try again later",
    ),
    "too many requests": (
        fault("revision", 429, headers={"Retry-After": "7"}),
        r"too many requests \(429\), again after 7 s",
        "wait, then start again: .*",
    ),
    "too many files": (
        fault("GET /api/resolve-cache", 429, headers={"Retry-After": "7"}),
        r"too many requests \(429\), again after 7 s",
        "wait, then start again: .*",
    ),
    "an error": (fault("revision", 500), "{url} answers 500", "try again later, or use a copy"),
    "an error of the listing": (fault("/tree/", 503), "{url} answers 503", "try again later, or use a copy"),
    "an error of a file": (fault("GET /api/resolve-cache", 502), "{url} answers 502", "try again later, or use a copy"),
    "silence": (fault("revision", act="hang"), "no answer from {url}: timed out", "try again: .*; use a copy"),
    "a cut": (
        fault("/tree/", act="cut"),
        "no answer from {url}: peer closed connection .*",
        "try again: .*; use a copy",
    ),
    "another network": (
        fault("", act="page"),
        "what answers at {url} is no hub: .*",
        "check HF_ENDPOINT and the proxy; use a copy",
    ),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_failure_is_one_line_with_reason_and_remedy(hub, client, kind, tmp_path):
    wrong, reason, remedy = FAILURES[kind]
    hub.commit("dataset", GLUE, {"a.json": b"[]"})
    hub.fail(**wrong)
    started = time.monotonic()
    line, commit, waits = client(hub_client.fetched, GLUE)
    assert commit is None
    names = {"url": re.escape(hub.url), "page": re.escape(f"{hub.url}/datasets/{GLUE}")}
    expected = rf"cannot fetch {GLUE} at 'main' from the hub \({reason.format(**names)}\); {remedy.format(**names)}"
    assert re.fullmatch(expected, line), line
    assert time.monotonic() - started < 30
    assert sum(wait for wait in waits if wait >= 1) < 90  # of the library and ours together
    if kind not in ("another network", "silence"):
        hub.faults.clear()
        assert client(hub_client.fetched, GLUE)[:2] == (
            {"a.json": sha256(b"[]")},
            hub.repos["dataset", GLUE].branches["main"],
        )


def test_a_gated_model_in_chunked_storage(hub, client, roberta):
    hub.chunked = True
    hub.commit("model", "meta-llama/Llama-2-7b-hf", {"model.safetensors": roberta["model.safetensors"]})
    hub.repos["model", "meta-llama/Llama-2-7b-hf"].gated = True
    line, *_ = client(hub_client.fetched, "meta-llama/Llama-2-7b-hf", kind="model")
    page = re.escape(f"{hub.url}/meta-llama/Llama-2-7b-hf")
    assert re.fullmatch(
        rf"cannot fetch meta-llama/Llama-2-7b-hf at 'main' from the hub \(it is gated \(401\)\); accept its "
        rf"licence at {page}, then {LOGIN}",
        line,
    ), line


def test_an_unknown_commit_and_a_name_that_cannot_be(hub, client):
    hub.commit("dataset", GLUE, {"a.json": b"[]"})
    for revision in ("v9", "f" * 40):
        line, *_ = client(hub_client.fetched, GLUE, revision=revision)
        assert re.match(
            rf"cannot fetch {GLUE} at '{revision}' from the hub \(it has no such revision\); name a branch", line
        )
    line, *_ = client(hub_client.fetched, "a/b/c")
    assert re.fullmatch(
        r"cannot fetch a/b/c at 'main' from the hub \(Repo id must .*\); a repository is named OWNER/NAME", line
    )


@pytest.mark.slow
def test_a_cache_that_cannot_be_written(hub, client, tmp_path):
    hub.commit("dataset", GLUE, {"a.json": b"[]"})
    (tmp_path / "file").write_text("")
    line, *_ = client(hub_client.fetched, GLUE, cache=tmp_path / "file")
    assert re.fullmatch(
        rf"cannot fetch {GLUE} at 'main' from the hub \(Not a directory: .*\); name a folder with room for the "
        r"cache with HF_HOME=DIR",
        line,
    ), line


# ---- the programs


def program(script: str, environment: dict, home: Path, *overrides: str, **changed) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "scripts" / script), *overrides]
    own = environment | {"HF_HOME": str(home), "MELORA_BENCH_CACHE": str(home / "melora_bench")} | changed
    home.mkdir(exist_ok=True)
    return subprocess.run(command, env=own, cwd=home, capture_output=True, text=True, timeout=300)


def only_line(done: subprocess.CompletedProcess) -> str:
    """The one line of a program that could not do its work."""
    said = done.stdout + done.stderr
    lines = [line for line in said.splitlines() if "error: " in line]
    assert done.returncode == 1 and "Traceback" not in said and len(lines) == 1, said
    return lines[0].partition("error: ")[2]


@pytest.mark.slow
def test_the_training_script_online_offline_and_refused(hub, environment, roberta, point, tmp_path):
    weights, rows = hub.commit("model", ROBERTA, roberta), hub.commit("dataset", GLUE, glue_files("mrpc"))
    found = {}
    for name, changed in (("online", {}), ("offline", {"HF_HUB_OFFLINE": "1"})):
        done = program("train.py", environment, tmp_path / "home", *point(name), **changed)
        assert done.returncode == 0, done.stderr
        (path,) = (tmp_path / name / "results").rglob("*.json")
        found[name] = records.load(path)
        if name == "online":
            hub.stop()
    hub.start()
    assert scores(found["online"]) == scores(found["offline"])
    assert found["offline"].model["commit"] == weights
    assert {origin["commit"] for origin in found["offline"].data.values()} == {rows}
    hub.repos["model", ROBERTA].gated = True
    line = only_line(program("train.py", environment, tmp_path / "other", *point("gated")))
    assert f"{ROBERTA} at 'main' from the hub (it is gated (401)); accept its licence at {hub.url}/{ROBERTA}" in line
    with hub.down():
        line = only_line(program("train.py", environment, tmp_path / "third", *point("down")))
    assert "Connection refused" in line and "backbone=minilm" in line


@pytest.mark.slow
def test_the_documented_way_to_nodes_without_a_network(hub, client, environment, roberta, tiny_llama, tmp_path):
    """The commands of docs/cluster.md fetch all that offline runs read, and no pickle."""
    files = {path: content for task in TEXTS for path, content in glue_files(task).items()}
    hub.commit("dataset", GLUE, files)
    hub.commit("model", ROBERTA, roberta)
    hub.commit("model", "meta-llama/Llama-2-7b-hf", contents(tiny_llama) | {"pytorch_model.bin": b"not a pickle"})
    hub.commit(
        "dataset", "yahma/alpaca-cleaned", {"alpaca_data_cleaned.json": b'[{"instruction": "Add.", "output": "1"}]'}
    )
    root = tmp_path / "files"
    for name, (repo, branch) in BENCHMARKS.items():
        folder = instruct_fakes.write_hub(root / name, converted=name == "bbh") / name
        hub.commit("dataset", repo, contents(folder), branch)
    commands = re.findall(r"^\.venv/bin/hf (.+?)(?:  #.*)?$", (ROOT / "docs" / "cluster.md").read_text(), re.M)
    cache = tmp_path / "cache"
    for command in commands:
        words = [sys.executable, "-m", "huggingface_hub.cli.hf", *shlex.split(command)]
        subprocess.run(words, env=environment | {"HF_HUB_CACHE": str(cache)}, check=True, capture_output=True)
    assert len(commands) == 6 and hub.asked("GET .*[.]bin") == 0
    with hub.down():
        for task in TEXTS:
            assert len(client(hub_client.task_rows, task, offline=True)["train"][1]) == 40
        assert client(hub_client.weights, offline=True)[0]["model.safetensors"] == sha256(roberta["model.safetensors"])
        assert len(client(hub_client.instructions, offline=True)[0]) == 1
        for name in ("mmlu", "bbh"):
            sizes = [f"{key}={value}" for key, value in instruct_fakes.SMALL[name].items()]
            local = instruct_fakes.benchmark(name).read(root / name)
            assert client(hub_client.questions, name, *sizes, offline=True).subjects == local.subjects
        found, *_ = client(hub_client.fetched, "meta-llama/Llama-2-7b-hf", kind="model", patterns=FILES, offline=True)
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(found)


@pytest.mark.slow
def test_the_scoring_script_online_and_refused(hub, environment, tiny_llama, tmp_path):
    hub.commit("model", "meta-llama/Llama-2-7b-hf", contents(tiny_llama))
    files = contents(instruct_fakes.write_hub(tmp_path / "files", converted=True) / "bbh")
    commit = hub.commit("dataset", "lukaemon/bbh", files, "refs/convert/parquet")
    sizes = {"subjects": 2, "shots": 2, "max_new_tokens": 2, "context": 200}
    overrides = ["benchmark=bbh", *(f"benchmark.{key}={value}" for key, value in sizes.items()), "limit=2"]
    overrides += ["data=hub", "backbone=llama2_7b", "backbone.dtype=float32"]
    done = program("instructeval.py", environment, tmp_path / "home", *overrides)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "home" / "results" / "runs").glob("*/bbh/*.json")
    assert records.load(path).data["test"]["commit"] == commit
    for wrong, words in (
        (
            fault("bbh/revision", 429, headers={"Retry-After": "9"}),
            r"lukaemon/bbh at 'refs/convert/parquet' .*429",
        ),
        (fault("Llama.*/revision", act="reset"), r"meta-llama/Llama-2-7b-hf at 'main' .*no answer from"),
    ):
        hub.faults.clear()
        hub.fail(**wrong)
        shutil.rmtree(tmp_path / "other", ignore_errors=True)
        assert re.search(words, only_line(program("instructeval.py", environment, tmp_path / "other", *overrides)))
