"""Work that was done before stands for the work asked for only while data, weights and start are the same."""

import dataclasses
import json
import logging
import shutil

import huggingface_hub
import pandas as pd
import pytest
from conftest import interrupt, run_point
from helpers import curves, one_quickly
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from melora_bench import files
from melora_bench.commands import status
from melora_bench.external.embedded import vader_folder
from melora_bench.external.fetching import nothing_fetched
from melora_bench.external.fields import build
from melora_bench.external.notices import warn_once
from melora_bench.records import provenance, records
from melora_bench.records.records import parts
from melora_bench.training import inputs
from melora_bench.training.configs import compose_run
from melora_bench.training.points import Point
from melora_bench.training.run import RunError


@pytest.fixture
def own(tiny_overrides, tiny_roberta, tiny_data, tmp_path) -> list[str]:
    """The tiny run's overrides, with copies of its data and model under tmp_path to change."""
    shutil.copytree(tiny_data, tmp_path / "data")
    shutil.copytree(tiny_roberta, tmp_path / "model")
    return [*tiny_overrides, f"data.root={tmp_path}/data", f"backbone.path={tmp_path}/model", "seeds=[0,1]"]


def flip_labels(tmp_path, split: str = "train") -> None:
    path = tmp_path / "data" / "sst2" / f"{split}.csv"
    head, *lines = path.read_text().splitlines()
    path.write_text("\n".join([head, *(f"{line[:-1]}{1 - int(line[-1])}" for line in lines)]) + "\n")


def change_weights(path) -> None:
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file({key: value + 0.5 for key, value in load_file(path).items()}, path, metadata=metadata)


def change_json(path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


CHANGES = {
    "data train": lambda tmp_path: flip_labels(tmp_path),
    "data validation": lambda tmp_path: flip_labels(tmp_path, "validation"),
    "weights": lambda tmp_path: change_weights(tmp_path / "model" / "model.safetensors"),
    "config of the backbone": lambda tmp_path: change_json(tmp_path / "model" / "config.json", hidden_dropout_prob=0.3),
    "tokenizer": lambda tmp_path: change_json(tmp_path / "model" / "tokenizer_config.json", model_max_length=9),
}


@pytest.mark.parametrize("key", one_quickly(CHANGES))
def test_a_record_of_other_inputs_is_no_skip(key, own, tmp_path):
    """The line says what differs and the two ways on; the record stays, and nothing is trained."""
    made = run_point(own)
    assert run_point(own) == []
    before = [path.read_bytes() for path in made]
    CHANGES[key](tmp_path)
    with pytest.raises(
        RunError,
        match=rf"s0\.json is the record of other inputs \({key}: sha256 \w+ there, sha256 \w+ here\)"
        r": give experiment=NAME to keep both, or delete that record",
    ):
        run_point(own)
    assert [path.read_bytes() for path in made] == before
    assert len(run_point([*own, "experiment=other"])) == 2
    made[0].unlink()
    made[1].unlink()
    assert run_point(own) == made and made[0].read_bytes() != before[0]


def test_a_record_that_knows_less_stands(own, tmp_path):
    """Older ones know the sha256 of the weights alone. Who wrote a config is no part of it."""
    [path] = run_point([*own, "seeds=[0]"])
    change_json(tmp_path / "model" / "config.json", transformers_version="4.0.0")
    assert run_point([*own, "seeds=[0]"]) == []
    CHANGES["config of the backbone"](tmp_path)
    record = records.load(path)
    model = {key: record.model[key] for key in ("name", "repo", "commit", "sha256")}
    dataclasses.replace(record, model=model).save(tmp_path / "results")
    assert run_point([*own, "seeds=[0]"]) == []


def test_a_split_that_appears_later_is_other_data(own, tmp_path):
    mnli = tmp_path / "data" / "mnli"
    mnli.mkdir()
    for split in ("train", "validation_matched"):
        rows = ["premise,hypothesis,label", *(f"good,bad {i},{i % 3}" for i in range(24))]
        (mnli / f"{split}.csv").write_text("\n".join(rows))
    own = [*own, "task=mnli", "epochs=1"]
    run_point(own)
    assert run_point(own) == []
    shutil.copy(mnli / "validation_matched.csv", mnli / "validation_mismatched.csv")
    with pytest.raises(RunError, match=r"data validation_mismatched: none there, sha256 \w+ here"):
        run_point(own)


@pytest.mark.parametrize("kind", ["run", "folder"])
def test_a_start_that_was_replaced(kind, own, tmp_path):
    [first, _] = run_point([*own, "experiment=first"])
    name = records.load(first).run_id.removesuffix("-s0")
    folder = tmp_path / "outputs" / "runs" / f"{name}-s0"
    start = [*own, "seeds=[0]", f"init_from={folder if kind == 'folder' else name}"]
    run_point(start)
    assert run_point(start) == []
    change_weights(folder / "last.safetensors")
    with pytest.raises(RunError, match=r"the record of other inputs \(start: sha256 \w+ there, sha256 \w+ here\)"):
        run_point(start)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_record_that_cannot_be_read_is_not_done(content, own):
    made = run_point(own)
    made[1].write_text(content)
    with pytest.raises(RunError, match=r"s1\.json .*(not valid JSON|has schema).*delete it and run that point again"):
        run_point(own)


def test_a_refused_seed_stops_no_other(own, tmp_path, caplog):
    """Those without a record are trained; the command fails at the end, and nobody is told that they failed."""
    [made] = run_point([*own, "seeds=[0]"])
    made.write_text("{")
    caplog.set_level(logging.INFO, logger="melora_bench")
    point = Point.of(*compose_run(own))
    with point.claimed(), pytest.raises(RunError, match=r"s0\.json is not valid JSON"):
        run_point(own)  # another process trains seed 1
    assert "seeds [1] are left to it" in caplog.text and point.todo() == [1]
    with pytest.raises(RunError, match=r"s0\.json is not valid JSON"):
        run_point(own)
    assert point.todo() == [] and made.read_text() == "{"
    assert not list((tmp_path / "outputs").rglob("error.txt"))


def test_a_record_stands_where_its_data_are_not_at_hand(own, tmp_path, caplog):
    """With a warning, once, however many records there are."""
    run_point(own)
    shutil.rmtree(tmp_path / "data")
    warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger="melora_bench"):
        assert run_point(own) == []
        assert run_point(own) == []
    assert [record.getMessage() for record in caplog.records if "not compared" in record.getMessage()] == [
        f"records are not compared with their data, not at hand here: data.root={tmp_path}/data has no "
        f"folder sst2/ with its "
        "splits as .parquet, .jsonl or .csv"
    ]


def test_a_look_fetches_nothing(own, tmp_path, monkeypatch, caplog):
    """Neither the skip nor status asks a hub: what is in its cache is compared, and a record whose data are not
    stands."""
    folder, asked = tmp_path / "hub" / ("c" * 40), []
    for split in ("train", "validation"):
        (folder / "sst2").mkdir(parents=True, exist_ok=True)
        frame = pd.read_csv(tmp_path / "data" / "sst2" / f"{split}.csv")
        frame.to_parquet(folder / "sst2" / f"{split}-00000-of-00001.parquet")

    def snapshot(repo, *, local_files_only, **_):
        asked.append(local_files_only)
        if local_files_only and not folder.exists():
            raise LocalEntryNotFoundError("no network was asked")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    command = [*(item for item in own if not item.startswith("data")), "data=hub"]
    made = run_point(command)
    assert set(asked) == {False}
    asked.clear()
    assert run_point(command) == [] and set(asked) == {True} and not caplog.messages
    shutil.rmtree(folder)
    assert run_point(command) == []
    assert (
        f"with their data, not at hand here: nyu-mll/glue at 'main' is not in the cache {HF_HUB_CACHE}" in caplog.text
    )
    made[0].unlink()
    asked.clear()
    with pytest.raises(RunError):  # what is to be trained is fetched
        run_point(command)
    assert asked[-1] is False


def test_what_a_package_carries_is_not_fetched_for_a_look(monkeypatch, tmp_path):
    monkeypatch.setenv("MELORA_BENCH_CACHE", str(tmp_path))
    monkeypatch.setattr("melora_bench.external.embedded.subprocess.run", None)  # would raise if it were called
    with nothing_fetched(), pytest.raises(ValueError, match=rf"vaderSentiment==3.3.2 is not in the cache {tmp_path}"):
        vader_folder()


@pytest.mark.parametrize(("absent", "key"), [("model", "data train"), ("data", "weights"), ("start", "weights")])
def test_what_is_at_hand_is_compared(absent, key, own, tmp_path, caplog):
    """Each of data, weights and start, whatever else is missing."""
    run_point([*own, "experiment=first", "seeds=[0]"])
    [start] = (tmp_path / "outputs").rglob("last.safetensors")
    own = [*own, "seeds=[0]", f"init_from={start.parent}"]
    run_point(own)
    warn_once.cache_clear()
    CHANGES[key](tmp_path)
    if absent == "start":
        start.unlink()
    else:
        shutil.rmtree(tmp_path / absent)
    with pytest.raises(RunError, match=rf"the record of other inputs \({key}: "):
        run_point(own)
    assert f"not compared with their {absent.replace('model', 'weights')}, not at hand here: " in caplog.text


def test_the_seeds_of_a_point_are_compared_with_one_reading(own, monkeypatch):
    """Data and weights are looked at once, however many seeds are recorded."""
    looks, made = [], run_point(own)
    monkeypatch.setattr(inputs, "build", lambda config, group: looks.append(group) or build(config, group))
    assert run_point(own) == [] and len(made) == 2
    assert looks == ["task", "data", "backbone"]


def test_status_says_what_a_start_would(own, tmp_path, capsys):
    """In words, by seed; the other seeds' records count."""
    table = ["quickstart", "task=movie", "method=lora"]
    (tmp_path / "data" / "sst2").rename(tmp_path / "data" / "movie")
    kept = [item for item in own if not item.startswith(("task=", "backbone="))]
    command = ["table=quickstart", *table[1:], "backbone=roberta_base", *kept, "experiment=mine", "hydra.mode=RUN"]
    made = run_point(command)
    asked = [*table, "backbone=roberta_base", *kept, "experiment=mine"]
    assert status.main(asked) == 0
    assert "quickstart: 2 done, 0 running, 0 failed, 0 missing" in capsys.readouterr().out
    made[1].write_text("")
    status.main(asked)
    out = capsys.readouterr().out
    assert "done [0]  refused [1]" in out and f"refused: {made[1]} is not valid JSON" in out
    change_weights(tmp_path / "model" / "model.safetensors")
    made[1].unlink()
    status.main(asked)
    out = capsys.readouterr().out
    assert "refused [0]  missing [1]" in out and f"refused: {made[0]} is the record of other inputs (weights: " in out


@pytest.fixture
def begun(own):
    """A run that died after its first epoch."""
    interrupt(own)
    return own


@pytest.mark.parametrize("key", CHANGES)
def test_a_checkpoint_does_not_go_on_with_other_inputs(key, begun, tmp_path):
    [checkpoint] = (tmp_path / "outputs").rglob("checkpoint.pt")
    before = checkpoint.read_bytes()
    CHANGES[key](tmp_path)
    with pytest.raises(
        RunError, match=rf"was begun as another run \({key}: .*\): give experiment=NAME to keep both, or delete"
    ):
        run_point(begun)
    assert checkpoint.read_bytes() == before and not list((tmp_path / "results").rglob("*.json"))
    checkpoint.unlink()
    assert len(run_point(begun)) == 2


def test_fewer_rows_are_another_schedule(begun, tmp_path):
    """The file lost its last rows: fewer steps, other data; the first that differs is named."""
    path = tmp_path / "data" / "sst2" / "train.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:33]) + "\n")
    with pytest.raises(RunError, match=r"was begun as another run \(steps: 10 there, 4 here\)"):
        run_point(begun)


def test_who_trained_the_first_epochs_is_recorded(begun, own, tmp_path, monkeypatch, caplog):
    """A run that goes on with other code or on another device lists its parts; its numbers are those of an unbroken
    one."""
    monkeypatch.setattr(provenance, "git_state", lambda: {"commit": "f" * 40, "dirty": True})
    monkeypatch.setattr(provenance, "code_sha256", lambda: "c" * 64)
    with caplog.at_level(logging.WARNING, logger="melora_bench"):
        made = [records.load(path) for path in run_point(begun)]
    assert "goes on with other code, versions or device than it was begun with" in caplog.text
    [earlier] = made[0].env["earlier"]
    assert earlier["until_epoch"] == 1 and earlier["git"] != made[0].git == {"commit": "f" * 40, "dirty": True}
    assert earlier["code"] != "c" * 64 and earlier["env"]["device"] == made[0].env["device"]
    assert [git["commit"] for git, _ in parts(made[0])] == [earlier["git"]["commit"], "f" * 40]
    whole = run_point([*own, f"results_dir={tmp_path}/whole", f"output_dir={tmp_path}/whole"])
    assert [curves(path) for path in whole] == [curves(record.path(tmp_path / "results")) for record in made]
    assert "earlier" not in records.load(whole[0]).env


def test_a_run_that_goes_on_unchanged_has_one_part(begun):
    made = [records.load(path) for path in run_point(begun)]
    assert made[0].resumed_at == [1] and "earlier" not in made[0].env and len(parts(made[0])) == 1


def test_instructions_are_compared_too(alpaca_overrides, tiny_alpaca, tmp_path):
    root = shutil.copy(tiny_alpaca, tmp_path / "rows.json")
    command = [*alpaca_overrides, f"data.root={root}", "epochs=1"]
    run_point(command)
    assert run_point(command) == []
    root.write_text(root.read_text().replace("Say", "Tell"))
    with pytest.raises(RunError, match=r"the record of other inputs \(data train: "):
        run_point(command)


def test_hashing_again_reads_only_what_changed(tmp_path, monkeypatch):
    """A large file is read once, and again when it was written."""
    path, read = tmp_path / "x", []
    path.write_text("one")
    monkeypatch.setattr(files, "sha256_file", lambda path: read.append(path) or path.read_text())
    assert [files.sha256_once(path), files.sha256_once(path)] == ["one", "one"] and len(read) == 1
    path.write_text("other")
    assert files.sha256_once(path) == "other" and len(read) == 2
