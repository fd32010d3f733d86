"""Nothing in a file that somebody sends is acted on: adapters, checkpoints and model folders are checked, or refused in
one line."""

import builtins
import contextlib
import copy
import functools
import json
import random
import re
import shutil

import pytest
import torch
from conftest import files, interrupt, run_point, tiny_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from melora_bench.adapters.files import ACCOUNT
from melora_bench.commands import export as command
from melora_bench.external.embedded import OPTION, PUBLIC
from melora_bench.files import ROOT, options, sha256_file
from melora_bench.models.backbones import Encoder
from melora_bench.models.weights import weight_files
from melora_bench.records.identity import config_hash
from melora_bench.training import checkpoints
from melora_bench.training.checkpoints import load_checkpoint, save_checkpoint
from melora_bench.training.run import RunError


@pytest.fixture(scope="module")
def adapter(tiny_roberta, tiny_data, tmp_path_factory):
    """The adapter file of a short run, with an account of its own."""
    root = tmp_path_factory.mktemp("adapter")
    run_point([*tiny_run(tiny_roberta, tiny_data, root), "epochs=1", "batch_size=16"])
    [path] = (root / "outputs").rglob("last.safetensors")
    return path


@pytest.fixture
def export(adapter, tiny_roberta, tmp_path, capsys):
    """export(account): exit code and standard error for the adapter with that account, whose hash is made right."""

    def call(account: dict, fix: bool = True) -> tuple[int, str]:
        if fix and isinstance(account.get("config"), dict):
            with contextlib.suppress(ValueError):  # it holds a number that no JSON has
                account["config_hash"] = config_hash(account["config"])
        file = tmp_path / "sent" / "last.safetensors"
        file.parent.mkdir(exist_ok=True)
        save_file(load_file(adapter), file, metadata={"melora_bench": json.dumps(account)})
        shutil.rmtree(tmp_path / "to", ignore_errors=True)
        capsys.readouterr()
        code = command.main([f"run={file}", f"to={tmp_path}/to", f"backbone.path={tiny_roberta}"])
        out, err = capsys.readouterr()
        assert (code, out == "") in ((0, False), (1, True)), err
        assert files(tmp_path) - {"sent/last.safetensors"} == (
            {f"to/{name}" for name in ("README.md", "adapter_config.json", "adapter_model.safetensors")}
            if code == 0
            else set()
        )
        return code, err

    return call


def account_of(path) -> dict:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["melora_bench"])


def test_the_account_as_it_was_written_is_taken(adapter, export):
    assert export(account_of(adapter)) == (0, "")


def nested(marker) -> dict:
    """What Hydra's `instantiate` would call."""
    return {"_target_": "builtins.open", "file": str(marker), "mode": "w"}


@pytest.mark.parametrize(
    ("group", "key"),
    [
        ("method", "r"),
        ("method", "target_modules"),
        ("method", "extra"),
        ("task", "num_labels"),
        ("task", "text"),
        ("backbone", "target_modules"),
        ("backbone", "head"),
        ("backbone", "dropout"),
    ],
)
def test_a_class_named_in_an_adapter_is_never_called(group, key, adapter, export, tmp_path):
    """Neither as a value nor inside a list; the marker that its call would leave is not there."""
    for place in (lambda value: value, lambda value: [value]):
        account = account_of(adapter)
        account["config"][group][key] = place(nested(tmp_path / "marker"))
        code, err = export(account)
        assert code == 1 and f"{group}.{key}" in err and not (tmp_path / "marker").exists()


def test_the_target_of_a_group_is_ours(adapter, export, tmp_path):
    account = account_of(adapter)
    account["config"]["method"] |= nested(tmp_path / "marker")
    assert export(account)[0] == 1


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "${oc.env:NOT_SET}", "${backbone.name}", "${now:%Y}"])
def test_an_interpolation_in_an_adapter_is_a_text(text, adapter, export, monkeypatch):
    monkeypatch.setenv("HOME", "kaiming_uniform")
    account = account_of(adapter)
    account["config"]["method"]["init_a"] = text
    code, err = export(account)
    assert code == 1 and f"init_a={text!r} is unknown" in err


@pytest.mark.parametrize(("value", "shown"), [("\n", r"\n"), ("\x1b[2J", r"\x1b[2J"), ("\u2028", r"\u2028")])
def test_what_no_line_holds_is_shown_as_python_writes_it(value, shown, adapter, export):
    """Neither a second line nor a terminal's command, as a value and as a key."""
    for place in ({"version": value}, {value: 1}):
        account = account_of(adapter)
        account["config"]["task"] |= place
        code, err = export(account)
        assert code == 1 and shown in err and err.count("\n") == 1 and err[:-1].isprintable()


@pytest.mark.parametrize("group", ["method", "task", "backbone"])
@pytest.mark.parametrize("choice", ["../../x", "/tmp/x", "lora.yaml", "../method/lora", "", None, "nothing"])
def test_an_option_that_configs_does_not_have(group, choice, adapter, export):
    account = account_of(adapter)
    account["choices"][group] = choice
    code, err = export(account)
    assert code == 1 and re.search(rf"{group}=\S+ is no option|choices\.{group} is .*, not a name of", err)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", "0/../../x"),
        ("seed", "0"),
        ("seed", -1),
        ("seed", 0.5),
        ("seed", True),
        ("run_id", "a/b/c-s0/../../x"),
        ("run_id", "../b/c-s0"),
        ("run_id", "a/b/c-s1"),
        ("run_id", "a/b/c\n-s0"),
        ("step", 99),
        ("step", -1),
        ("step", "5"),
        ("total_steps", 1e9),
        ("epoch", float("nan")),
        ("epoch", "1"),
        ("metrics", {"accuracy": float("inf")}),
        ("metrics", {"a|b\n": 1.0}),
        ("metrics", []),
        ("git", {"commit": "x\n# y", "dirty": False}),
        ("git", "x"),
        ("model", {"name": "../x", "sha256": "0" * 64}),
        ("model", {"name": "tiny", "sha256": "short"}),
        ("model", {}),
        ("config", []),
        ("config", {"method": {}}),
        ("choices", []),
    ],
)
def test_a_value_that_no_run_of_ours_writes(key, value, adapter, export):
    account = account_of(adapter)
    account[key] = value
    code, err = export(account)
    assert code == 1 and "says what no run of ours does" in err


@pytest.mark.parametrize("key", sorted(ACCOUNT))
def test_an_account_that_lacks_a_key(key, adapter, export):
    account = account_of(adapter)
    del account[key]
    code, err = export(account, fix=False)
    assert code == 1 and "does not say which run it is of" in err


def test_an_account_whose_config_was_changed(adapter, export):
    account = account_of(adapter)
    account["config"]["method"]["alpha"] = 1
    code, err = export(account, fix=False)
    assert code == 1 and "config_hash is not that of config" in err


def test_a_repository_that_only_the_adapter_names(adapter, tmp_path, capsys):
    """It is not asked for: without a folder of the user's, a backbone comes from where configs/ says."""
    account = account_of(adapter)
    account["config"]["backbone"]["repo"] = "somebody/else"
    account["config_hash"] = config_hash(account["config"])
    save_file(load_file(adapter), tmp_path / "x.safetensors", metadata={"melora_bench": json.dumps(account)})
    assert command.main([f"run={tmp_path}/x.safetensors", f"to={tmp_path}/to"]) == 1
    assert "somebody/else as its backbone, which is none of ours" in capsys.readouterr().err


PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 10**12),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["../../x", "${oc.env:HOME}", "\n| x |", "__import__", "a" * 2000]),
)
KEYS = st.text(max_size=6)
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=6
)


def places(value: object, trail: tuple = ()) -> list[tuple]:
    """The trail of keys to everything inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in inside for place in ((*trail, key), *places(item, (*trail, key)))]


def put(value: object, trail: tuple, new: object) -> None:
    functools.reduce(lambda inner, key: inner[key], trail[:-1], value)[trail[-1]] = new


def fuzz(examples: int):
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=examples < 1000,
        print_blob=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


def whatever_an_account_says(adapter, export, data) -> None:
    account = account_of(adapter)
    account["total_steps"] = min(account["total_steps"], 100)
    for trail in data.draw(st.lists(st.sampled_from(places(account)), min_size=1, max_size=2)):
        value = data.draw(VALUES)
        try:
            put(account, trail, value)
        except (LookupError, TypeError):
            continue  # the other change has taken the place away
    code, err = export(account, fix=data.draw(st.booleans()))
    assert code == 0 or (err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err), err


@fuzz(60)
@given(data=st.data())
def test_whatever_an_account_says(adapter, export, data):
    """One line and exit 1, or an adapter that stock PEFT loads with our logits: never anything else."""
    whatever_an_account_says(adapter, export, data)


@pytest.mark.slow
@fuzz(1000)
@given(data=st.data())
def test_whatever_an_account_says_at_length(adapter, export, data):
    whatever_an_account_says(adapter, export, data)


# ---- model folders


@pytest.fixture
def folder(tiny_roberta, tmp_path):
    return shutil.copytree(tiny_roberta, tmp_path / "model")


def edit(path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_no_code_of_a_model_folder_runs(name, folder, tmp_path, refused, monkeypatch):
    """Not even where somebody, or a pipe, answers `y` to transformers' question."""
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')\nclass Evil: pass\n")
    auto = {
        "AutoConfig": "evil.Evil",
        "AutoModelForSequenceClassification": "evil.Evil",
        "AutoTokenizer": [None, "evil.Evil"],
    }
    edit(
        folder / name,
        auto_map=auto,
        **({"model_type": "evil"} if name == "config.json" else {"tokenizer_class": "Evil"}),
    )
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    if name == "config.json":
        refused(r"model does not load", f"backbone.path={folder}")
    else:
        encoder(folder).tokenizer()
    assert not (tmp_path / "marker").exists()


def encoder(folder) -> Encoder:
    fields = {
        "name": "tiny",
        "repo": None,
        "revision": None,
        "target_modules": ["query"],
        "dropout": None,
        "seen": [],
        "head": "classifier",
    }
    return Encoder(path=str(folder), **fields)


def test_the_hash_is_that_of_the_weights_that_are_loaded(folder, tiny_roberta):
    """Other files of weights beside them are neither loaded nor hashed."""
    tensors = load_file(folder / "model.safetensors")
    save_file({key: value + 1 for key, value in tensors.items()}, folder / "other.safetensors")
    torch.save({key: value + 1 for key, value in tensors.items()}, folder / "pytorch_model.bin")
    assert encoder(folder).origin()["sha256"] == sha256_file(tiny_roberta / "model.safetensors")
    loaded = dict(encoder(folder).model(2).named_parameters())
    key = "roberta.encoder.layer.0.attention.self.query.weight"
    assert torch.equal(loaded[key], tensors[key])


def test_a_folder_with_pickled_weights_alone(folder, refused):
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    torch.save(load_file(folder / "other.safetensors"), folder / "pytorch_model.bin")
    refused(r"holds neither model\.safetensors nor model\.safetensors\.index\.json", f"backbone.path={folder}")


def test_a_folder_that_is_an_adapter_too(folder, refused):
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "/somewhere"}')
    refused(r"holds an adapter_config\.json", f"backbone.path={folder}")


def sharded(folder, names: list[str], index: object = None) -> None:
    """The weights in shards of these names; `index`, if given, stands in the place of the right one."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts = {key: names[number % len(names)] for number, key in enumerate(sorted(tensors))}
    for name in names:
        save_file({key: tensors[key] for key in parts if parts[key] == name}, folder / name, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": parts} if index is None else index
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_shards_are_hashed_in_the_order_of_their_names_and_loaded(folder):
    """The index only names them: written anew, with other totals, the weights are the same."""
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    whole = encoder(folder).model(2).state_dict()
    sharded(folder, names)
    assert [path.name for path in weight_files(folder)] == names
    here = encoder(folder).model(2).state_dict()
    assert all(torch.equal(here[key], value) for key, value in whole.items() if not key.startswith("classifier"))
    before = encoder(folder).origin()["sha256"]
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"metadata": {"total_size": 1}}))
    assert encoder(folder).origin()["sha256"] == before
    tensors = load_file(folder / names[1])
    next(iter(tensors.values())).view(-1)[0] += 1
    save_file(tensors, folder / names[1], metadata={"format": "pt"})
    assert encoder(folder).origin()["sha256"] != before


@pytest.mark.parametrize(
    "index",
    [
        {"weight_map": {"a": "../other.safetensors"}},
        {"weight_map": {"a": "/etc/passwd"}},
        {"weight_map": {"a": "x.bin"}},
        {"weight_map": {"a": 3}},
        {"weight_map": {}},
        {"weight_map": []},
        {},
        [],
        "x",
    ],
)
def test_an_index_that_names_other_places(index, folder, refused):
    names = ["model-00001-of-00001.safetensors"]
    shutil.copy(folder / "model.safetensors", folder.parent / "other.safetensors")
    sharded(folder, names, index)
    refused(r"model\.safetensors\.index\.json", f"backbone.path={folder}")
    (folder.parent / "other.safetensors").unlink()


def test_weights_of_a_folder_have_a_name_of_their_own(folder, monkeypatch):
    """They are not tabled as what configs/backbone describes, unless they are the public ones, to the byte. The same
    weights have one name, and others another, wherever they lie."""
    fields = vars(encoder(folder)) | {"name": "roberta_base", "repo": "FacebookAI/roberta-base"}
    digest = sha256_file(folder / "model.safetensors")
    local = {"name": f"local-{digest[:10]}", "repo": None, "commit": None, "sha256": digest}
    assert Encoder(**fields).origin().items() >= local.items()
    assert encoder(folder).origin()["name"] == "tiny"
    monkeypatch.setitem(OPTION, digest, "roberta_base")
    assert Encoder(**fields).origin()["name"] == "roberta_base"
    assert encoder(folder).origin()["name"] == "tiny"


def test_the_names_of_public_weights_are_options():
    assert set(OPTION.values()) <= options("backbone") and PUBLIC.keys() <= OPTION.keys()


# ---- checkpoints


@pytest.fixture(scope="module")
def begun(tiny_roberta, tiny_data, tmp_path_factory):
    """(overrides, path): a run of seeds 0 and 1 that died in its second epoch, and its checkpoint."""
    root = tmp_path_factory.mktemp("begun")
    overrides = [*tiny_run(tiny_roberta, tiny_data, root), "epochs=3", "batch_size=24", "seeds=[0,1]"]
    interrupt(overrides)
    [path] = (root / "outputs").rglob("checkpoint.pt")
    return overrides, path


@pytest.fixture
def resumed(begun, tmp_path):
    """resumed(content): the one line that refuses the run with these bytes as its checkpoint; None where it goes on."""

    def call(content: bytes, *more: str, place: str | None = None) -> str | None:
        overrides, path = begun
        shutil.rmtree(tmp_path / "outputs", ignore_errors=True)
        shutil.rmtree(tmp_path / "results", ignore_errors=True)
        name = path.relative_to(path.parents[4]).as_posix()
        target = tmp_path / "outputs" / (name if place is None else name.replace("-s0-1/", f"-s{place}/"))
        target.parent.mkdir(parents=True)
        target.write_bytes(content)
        for seed in (0, 1):
            done = path.parent.with_name(path.parent.name.replace("-s0-1", f"-s{seed}"))
            shutil.copytree(done, target.parent.with_name(done.name))
        line = None
        try:
            run_point([*overrides, f"results_dir={tmp_path}/results", f"output_dir={tmp_path}/outputs", *more])
        except RunError as error:
            line = str(error)
        there = list((tmp_path / "results").rglob("*.json"))
        if line is None:
            assert len(there) == 2 and not target.exists()
        else:
            assert not there and "\n" not in line and "delete" in line and str(target) in line, line
            assert target.read_bytes() == content
        return line

    return call


def test_a_checkpoint_as_it_was_written_is_taken(begun, resumed):
    assert resumed(begun[1].read_bytes()) is None


def test_every_flipped_bit_is_seen(begun, tmp_path):
    """Of the file's first line, of its numbers, and of what lies between."""
    whole, source = begun[1].read_bytes(), random.Random(0)
    for bit in [*range(0, 8 * 90, 7), *(source.randrange(8 * len(whole)) for _ in range(200))]:
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        (tmp_path / "checkpoint.pt").write_bytes(content)
        with pytest.raises(ValueError, match="is not a readable checkpoint"):
            load_checkpoint(tmp_path / "checkpoint.pt")


def with_state(begun, tmp_path, change) -> bytes:
    """The checkpoint with a changed state and the right hash."""
    state = load_checkpoint(begun[1])
    change(state)
    save_checkpoint(tmp_path / "changed.pt", state)
    content = (tmp_path / "changed.pt").read_bytes()
    (tmp_path / "changed.pt").unlink()
    return content


def first(tensors: dict) -> str:
    return min(tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state["trainer"].update(step=100), "step 100 is not the end of a round of this run of 9 steps"),
        (lambda state: state["trainer"].update(step=2), "step 2 is not the end of a round"),
        (lambda state: state["trainer"].update(step=-3), "step -3 is not"),
        (lambda state: state["trainer"].update(step="3"), "step 3 is not"),
        (lambda state: state["trainer"]["history"].pop(), "it holds 1 replicas, this run has 2"),
        (lambda state: state["trainer"].update(failed_at=torch.tensor([-1])), "this run has 2"),
        (
            lambda state: state["trainer"]["params"].pop(first(state["trainer"]["params"])),
            "is a tensor of one side alone",
        ),
        (lambda state: state["trainer"]["params"].update(x=torch.zeros(1)), "x is a tensor of one side alone"),
        (
            lambda state: state["trainer"]["params"].update({first(state["trainer"]["params"]): torch.zeros(1)}),
            r"is \(1,\), here",
        ),
        (
            lambda state: state["trainer"]["optimizer"]["state"][0].update(exp_avg=torch.zeros(1)),
            r"exp_avg of tensor 0 is \(1,\)",
        ),
        (lambda state: state["trainer"]["optimizer"]["param_groups"].pop(), "does not fit this run"),
        (lambda state: state["trainer"].pop("method"), "does not fit this run"),
        (lambda state: state.update(trainer=None), "does not fit this run"),
        (
            lambda state: state["run"].update(seeds=[0, 2]),
            r"begun as another run \(seeds: 0 and 2 there, 0 and 1 here\)",
        ),
        (lambda state: state["run"].update(steps=24), r"begun as another run \(steps: 24 there, 9 here\)"),
        (lambda state: state["run"].update(config="0" * 64), r"begun as another run \(config: sha256 0000000000 there"),
    ],
    ids=range(16),
)
def test_a_checkpoint_of_something_else(change, message, begun, resumed, tmp_path):
    """The hash being right, what it says is held against the run before anything is loaded."""
    line = resumed(with_state(begun, tmp_path, change))
    assert line is not None and re.search(message, line), line


def test_a_checkpoint_of_one_seed_does_not_fill_two_replicas(begun, tiny_overrides, resumed):
    """Copied to another pack's place, it is refused."""
    line = resumed(begun[1].read_bytes(), "seeds=[2,3]", place="2-3")
    assert "begun as another run (seeds: 0 and 1 there, 2 and 3 here)" in line


def test_code_in_a_checkpoint_does_not_run(begun, resumed, tmp_path):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "marker"), "w")

    line = resumed(with_state(begun, tmp_path, lambda state: state.update(seconds=Evil())))
    assert "is not a readable checkpoint" in line and not (tmp_path / "marker").exists()


def test_a_checkpoint_with_any_other_value(begun, tmp_path):
    """Whatever stands in it: the run's trainer refuses it by ValueError, or takes what it has the shape of."""
    state = load_checkpoint(begun[1])
    assert set(state) == set(checkpoints.CHECKPOINT)
    source, trails = random.Random(1), places({"trainer": state["trainer"]})
    changed = copy.deepcopy(state)
    put(changed, source.choice(trails), None)
    save_checkpoint(tmp_path / "x.pt", changed)
    assert set(load_checkpoint(tmp_path / "x.pt")) == set(state)


def test_configs_name_classes_of_this_package_only():
    for group in ("method", "task", "backbone", "data"):
        for name in options(group):
            assert OmegaConf.load(ROOT / "configs" / group / f"{name}.yaml")._target_.startswith("melora_bench.")
