"""Records: what a config hash sees, and every way in which a record file is refused."""

import json
import subprocess

import pytest
from conftest import composed
from omegaconf import OmegaConf
from synthetic import record

from melora_bench.files import ROOT, sha256_json
from melora_bench.records import provenance, records
from melora_bench.records.identity import UNLESS_SET, config_hash, identity

FIXTURES = sorted((ROOT / "tests" / "data" / "records" / "v1").glob("*/*.json"))
LOCAL = ["data=local", "data.root=/there"]


def digest(*overrides: str) -> str:
    config = OmegaConf.to_container(composed([*LOCAL, *overrides]), resolve=True)
    return config_hash(identity(config))


@pytest.mark.parametrize(
    "override",
    [
        "seeds=[3,4]",
        "experiment=other",
        "results_dir=/r",
        "output_dir=/o",
        "tracker=tensorboard",
        "data.root=/elsewhere",
        "backbone.path=/model",
        "method._target_=elsewhere.LoRA",
        "task._target_=elsewhere.Task",
        "_target_=elsewhere.main",
    ],
)
def test_the_hash_does_not_see_seeds_places_and_class_names(override):
    adds = "+" if override.startswith("_target_") else ""
    assert digest(adds + override) == digest()


@pytest.mark.parametrize(
    "override",
    [
        "method.version=2",
        "task.version=2",
        "lr=1e-3",
        "method.r=4",
        "method.alpha=8",
        "data.splits.train=part",
        "epochs=3",
        "precision=bf16",
        "max_train_rows=10",
        "init_from=adhoc/movie/lora-0",
        "max_steps=9",
        "eval_steps=9",
        "warmup_steps=0",
        "backbone.target_modules=[query]",
    ],
)
def test_the_hash_sees_what_changes_numbers(override):
    assert digest(override) != digest()


def test_a_later_key_changes_no_hash_while_it_is_null():
    """What runs were recorded before there was max_steps are still these runs."""
    config = {"lr": 1.0, "method": {"r": 8}}
    later = dict.fromkeys(UNLESS_SET)
    assert identity(config | later) == config and identity(config | later | {"max_steps": 3}) != config


def test_the_hash_does_not_see_the_order_of_keys_or_the_type_of_a_whole_number():
    config = {"lr": 2.0, "method": {"r": 8, "sizes": [1, 2.0], "init": None}}
    turned = {"method": {"init": None, "sizes": [1.0, 2], "r": 8.0}, "lr": 2}
    assert config_hash(config) == config_hash(turned)
    assert config_hash(config) != config_hash(config | {"lr": 2.5})
    assert config_hash(config) != config_hash(config | {"method": {"r": 8, "sizes": [2, 1], "init": None}})
    assert config_hash({"a": 1}) != config_hash({"a": "1"})


def test_a_saved_record_comes_back_equal_and_sealed(tmp_path):
    made = record(seed=2, curve=(0.5, 0.75, 1.0))
    path = made.save(tmp_path)
    assert path == tmp_path / "runs" / "mplora_table2" / "mrpc" / f"lora-{made.config_hash[:10]}-s2.json"
    back = records.load(path)
    assert back == made.sealed()
    assert len(back.digest) == 64
    assert made.digest == ""
    assert back.save(tmp_path / "again").read_bytes() == path.read_bytes()
    assert len([line for line in path.read_text().splitlines() if line.startswith("    {")]) == 3  # a line per epoch


def resealed(content: dict) -> dict:
    return content | {"digest": sha256_json({key: value for key, value in content.items() if key != "digest"})}


def changed_metric(content: dict) -> dict:
    content["epochs"][-1]["metrics"]["accuracy"] = 0.99
    return content


def changed_config(content: dict) -> dict:
    content["config"]["lr"] = 1.0
    return resealed(content)  # whoever repairs the digest still has the config's hash against them


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda content: resealed(content | {"schema": 2}), "schema 2, this version reads schema 1"),
        (lambda content: [content], "schema 'list'"),
        (lambda content: resealed(content | {"note": ""}), "unknown key or lacks one: note"),
        (
            lambda content: resealed({key: content[key] for key in content if key != "env"}),
            "unknown key or lacks one: env",
        ),
        (changed_metric, "was edited"),
        (changed_config, "was edited"),
        (lambda content: content | {"seed": 1}, "was edited"),
        (lambda content: content | {"wall_seconds": None}, "was edited"),
    ],
)
def test_load_refuses_a_file_that_is_off_and_names_it(tmp_path, edit, message):
    path = record().save(tmp_path)
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=message) as caught:
        records.load(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("damage", [lambda text: text[:-3], lambda text: "", lambda text: text.replace(":", "=", 1)])
def test_load_refuses_broken_json_and_names_the_file(tmp_path, damage):
    path = record().save(tmp_path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match="is not valid JSON") as caught:
        records.load(path)
    assert str(caught.value).startswith(str(path))


def test_reformatting_is_no_edit(tmp_path):
    made = record()
    path = made.save(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()), indent=4, sort_keys=True))
    assert records.load(path) == made.sealed()


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_records_of_schema_1_stay_readable(path):
    found = records.load(path)
    assert (found.schema, found.seed, found.packed_with, found.metric) == (1, 0, [1, 2], "accuracy")
    assert found.config_hash == "1d204ec8f1384639a7ef2921cc746dcef36791e4d714979ea73fc05a977972a0"
    assert records.best_epoch(found)["epoch"] == 2
    assert [entry["metrics"]["accuracy"] for entry in found.epochs] == [0.8725, 0.8848, 0.8799]


def test_there_is_a_record_of_schema_1_to_read():
    assert len(FIXTURES) == 1


def test_load_all_reads_one_experiment_and_stops_at_a_bad_file(tmp_path):
    for experiment, task in (("mine", "mrpc"), ("mine", "cola"), ("other", "mrpc")):
        path = record(experiment=experiment, task=task).save(tmp_path)
    assert sorted(found.choices["task"] for found in records.load_all(tmp_path, "mine")) == ["cola", "mrpc"]
    assert records.load_all(tmp_path, "nobody") == []
    path.write_text("{")
    with pytest.raises(ValueError, match=path.name):
        records.load_all(tmp_path, "other")


@pytest.mark.parametrize(
    ("curve", "epoch"), [((0.7, 0.9, 0.9, 0.8), 2), ((0.5, 0.4), 1), ((-0.2, -0.1), 2), ((0.5,), 1)]
)
def test_best_epoch_is_the_first_of_equals(curve, epoch):
    assert records.best_epoch(record(task="cola", curve=curve))["epoch"] == epoch


@pytest.mark.parametrize(("early", "epoch"), [(0, 1), (1, 3), (2, 3)])
def test_the_best_epoch_is_one_that_may_be_chosen(early, epoch, tmp_path):
    made = record(curve=(0.9, 0.7, 0.8), early=early)
    assert records.best_epoch(records.load(made.save(tmp_path)))["epoch"] == epoch


def test_keys_that_are_numbers_survive(tmp_path):
    """JSON makes text of them, which sorts differently from ten on: the record still matches its own digest."""
    one = record()
    one.epochs[-1]["report"]["metrics_by_rank"] = {rank: {"accuracy": 0.5} for rank in range(1, 13)}
    read = records.load(one.save(tmp_path))
    assert list(read.epochs[-1]["report"]["metrics_by_rank"]) == [str(rank) for rank in range(1, 13)]


def test_the_commit_and_a_dirty_tree_are_seen(tmp_path, monkeypatch):
    """Code counts, notes and results do not; outside a checkout nothing is known."""
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.git_state.__wrapped__() == {"commit": None, "dirty": None}
    code, note = tmp_path / "melora_bench" / "files.py", tmp_path / "results" / "note.md"
    for path in (code, note):
        path.parent.mkdir()
        path.write_text("one")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    clean = provenance.git_state.__wrapped__()
    assert len(clean["commit"]) == 40 and clean["dirty"] is False
    note.write_text("two")
    assert provenance.git_state.__wrapped__() == clean
    code.write_text("two")
    assert provenance.git_state.__wrapped__() == clean | {"dirty": True}
