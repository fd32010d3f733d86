"""Export to PEFT adapters and plain checkpoints: stock libraries must compute what our own layers do."""

import contextlib
import csv
import functools
import json
import re
import shutil
import warnings

import huggingface_hub
import peft
import pytest
import torch
from conftest import WORDS, composed, run_point, sentences, tiny_run
from helpers import MERGED
from hydra.utils import instantiate
from method_helpers import METHODS, PACKING, examples_first
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForMaskedLM

from melora_bench.adapters.card import base_name
from melora_bench.adapters.peft_format import NOTHING_ADAPTED, PREFIX, to_peft
from melora_bench.adapters.trained import load
from melora_bench.commands import export as command
from melora_bench.external.fields import build
from melora_bench.files import ROOT
from melora_bench.methods.attach import merge
from melora_bench.records import records
from melora_bench.records.records import best_epoch

HEAD = "classifier."
# What each method's update needs; the others' ranks depend on the run.
RANKS = dict.fromkeys(("lora", "lora_fa", "lora_plus", "rslora", "mplora", "share_lora"), 8)
RANKS |= dict.fromkeys(("melora", "multi_lora", "delta_lora"), 16) | {"vera": 256}
# The tiny model's features are small: these make the weaker methods' updates count.
STRONGER = {"adalora": ["method.alpha=1600"], "dylora": ["method.alpha=64"], "vera": ["method.d_initial=4"]}
LONG = ("epochs=12", "lr=0.02", "backbone.dropout=0", "method.lora_dropout=0", "backbone.target_modules=[query,value]")


@pytest.fixture(scope="module")
def trained(tiny_roberta, tiny_data, tmp_path_factory):
    """trained(method, *overrides): the records of seeds 0 and 1; every run is made once, when a test first asks."""
    root = tmp_path_factory.mktemp("trained")

    @functools.cache
    def run(method: str, *overrides: str) -> list[records.RunRecord]:
        return [
            records.load(path)
            for path in run_point(
                [
                    *tiny_run(tiny_roberta, tiny_data, root),
                    f"method={method}",
                    "seeds=[0,1]",
                    "lr=0.02",
                    "epochs=6",
                    "batch_size=16",
                    "backbone.target_modules=[value,intermediate.dense]",
                    *STRONGER.get(method, []),
                    *overrides,
                ]
            )
        ]

    run.root = root
    run.file = lambda record, which: root / "outputs" / "runs" / record.run_id / f"{which}.safetensors"
    return run


@pytest.fixture
def export(trained, tiny_roberta, capsys):
    """export(run=..., to=..., ...): the exit code, and what was printed; an option of None is left out."""

    def call(**options) -> tuple[int, str, str]:
        capsys.readouterr()
        given = {"output_dir": trained.root / "outputs", "backbone.path": tiny_roberta, **options}
        with warnings.catch_warnings():  # nobody who exports may read of a library's renamed attributes
            warnings.simplefilter("error", FutureWarning)
            code = command.main([f"{key}={value}" for key, value in given.items() if value is not None])
        return code, *capsys.readouterr()

    return call


def plain(folder, labels: int = 2):
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=labels).eval()


def rebuilt(folder, record, file):
    """Our own layers, attached for another seed, with every tensor of `file` put in by hand."""
    target = composed([f"method={record.choices['method']}"]).method._target_
    model = plain(folder)
    instantiate(record.config["method"] | {"_target_": target}).attach(model, "classifier", [99], total_steps=100)
    state = model.state_dict()
    for name, value in load_file(file).items():
        state[name].copy_(value.view_as(state[name]))
    return model.eval()


def headed(folder, file):
    """The backbone as it was, under the trained head."""
    model = plain(folder)
    model.load_state_dict({key: value for key, value in load_file(file).items() if key.startswith(HEAD)}, strict=False)
    return model


def texts(folder, count: int = 12):
    return AutoTokenizer.from_pretrained(folder)(
        [text for text, _ in sentences(count, 5)], padding=True, return_tensors="pt"
    )


@torch.no_grad()
def gap(one, two, folder) -> float:
    """The largest difference of two models' logits over sentences of unequal length."""
    x = texts(folder)
    assert x["attention_mask"].min() == 0
    return (one(**x).logits - two(**x).logits).abs().max().item()


def stock(adapter, folder):
    return peft.PeftModel.from_pretrained(plain(folder), adapter).eval()


def form_of(name: str) -> str:
    """The form that the method's layers declare; a method without layers has nothing that does not fit a PEFT
    folder."""
    method = build(composed([f"method={name}"]).method, "method")
    try:
        return method.make_layer(torch.nn.Linear(64, 64), 1).form
    except NotImplementedError:
        return "factors"


def is_refused(name: str, allowed: set[str], record, outcome: tuple[int, str, str]) -> bool:
    """Whether the method's form is none of `allowed`; the export must then have ended in one line that names both."""
    form = form_of(name)
    if form not in allowed:
        told = rf"error: {record.run_id}: \w+ makes updates of the form '{form}', and this takes .* only: [^\n]+\n"
        assert outcome[0] == 1 and outcome[1] == "" and re.fullmatch(told, outcome[2])
    return form not in allowed


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def ranks_of(tensors: dict) -> dict[str, int]:
    """The rank of each adapted module; the factors must agree about it and be float32."""
    found = {}
    for key, A in tensors.items():
        if key.endswith(".lora_A.weight"):
            B = tensors[key.replace("lora_A", "lora_B")]
            assert A.dtype == B.dtype == torch.float32 and A.shape[0] == B.shape[1]
            found[key.removeprefix(PREFIX).removesuffix(".lora_A.weight")] = len(A)
    return found


# ---- every method


@pytest.mark.parametrize("name", examples_first(PACKING))
def test_stock_peft_computes_what_we_do(name, trained, export, tiny_roberta, tmp_path):
    """The logits agree to 1e-5, and without the adapters they would not."""
    record, folder = trained(name)[1], tmp_path / "adapter"
    file = trained.file(record, "last")
    code, out, err = outcome = export(run=record.run_id, to=folder, which="last")
    if is_refused(name, {"factors"}, record, outcome):
        return
    assert code == 0 and err == ""
    assert re.fullmatch(rf"wrote {folder}  \(peft loads it with logits within .* of ours\)\n", out)
    ours = rebuilt(tiny_roberta, record, file)
    assert gap(stock(folder, tiny_roberta), ours, tiny_roberta) <= 1e-5
    assert (gap(headed(tiny_roberta, file), ours, tiny_roberta) > 1e-3) == (name != "head")


@pytest.mark.parametrize("name", examples_first(METHODS))
def test_transformers_alone_computes_what_we_do(name, trained, export, tiny_roberta, tmp_path):
    """The merged checkpoint's logits agree to 1e-5, with its own tokenizer; without the adaptation they would not."""
    record, folder = trained(name)[0], tmp_path / "merged"
    file = trained.file(record, "last")
    code, out, err = outcome = export(run=record.run_id, to=folder, which="last", merged="true")
    if is_refused(name, {"factors", "matrix"}, record, outcome):
        return
    assert code == 0 and err == "" and f"wrote {folder}  (transformers loads it with logits within " in out
    assert names(folder) == MERGED
    theirs, report = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()) and {value.dtype for value in theirs.state_dict().values()} == {torch.float32}
    ours = rebuilt(tiny_roberta, record, file)
    assert gap(theirs.eval(), ours, folder) <= 1e-5
    assert (gap(headed(tiny_roberta, file), ours, folder) > 1e-3) == (name != "head")
    assert texts(folder)["input_ids"].equal(texts(tiny_roberta)["input_ids"])


@pytest.mark.parametrize("name", examples_first(PACKING))
def test_adapter_files(name, trained, export, tiny_roberta, tmp_path):
    """Three files, no pickle; the config says of every module the rank that its tensors have, and alpha is that
    rank."""
    record = trained(name)[0]
    outcome = export(run=record.run_id, to=tmp_path / "a", which="last")
    if is_refused(name, {"factors"}, record, outcome):
        return
    assert names(tmp_path / "a") == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    ranks = ranks_of(tensors)
    for module, rank in ranks.items():
        assert config["rank_pattern"].get(module, config["r"]) == rank
        assert config["alpha_pattern"].get(module, config["lora_alpha"]) == rank
    assert config["target_modules"] == (sorted(ranks) or NOTHING_ADAPTED)
    source = load_file(trained.file(record, "last"))
    head = {f"{PREFIX}{key}": value for key, value in source.items() if key.startswith(HEAD)}
    assert len(head) == 4 and len(tensors) == 2 * len(ranks) + 4
    assert all(torch.equal(tensors[key], value) for key, value in head.items())
    fixed = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "modules_to_save": ["classifier"],
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
        "base_model_name_or_path": None,
        "revision": None,
    }
    assert {key: config[key] for key in fixed} == fixed
    own = {"r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern"}
    assert set(config) == own | set(fixed) and set(config) <= set(peft.LoraConfig.__dataclass_fields__)
    if name in RANKS:
        assert list(ranks.values()) == [RANKS[name]] * 4
    elif name == "dylora":  # ranks that no step has drawn are still 0
        used = {key.removesuffix(".B"): int((B != 0).any(0).sum()) for key, B in source.items() if key.endswith(".B")}
        assert ranks == used
    elif name == "adalora":
        assert ranks == record.epochs[-1]["report"]["ranks"] and sum(ranks.values()) == 32 < 4 * 12
    else:
        assert name != "head" or ranks == {}


def test_no_adapter_of_a_changed_backbone(trained, export, tmp_path):
    """Full fine-tuning is refused as an adapter, in one line."""
    code, out, err = export(run=trained("full")[0].run_id, to=tmp_path / "a")
    assert code == 1 and out == "" and names(tmp_path) == set()
    assert re.fullmatch(r"error: adhoc/sst2/full-\w+-s0 changed the backbone itself, .* merged=true\n", err)


def edited(source, target, change):
    """A copy of an adapter file with the account it has and the tensors that `change` leaves."""
    tensors = load_file(source)
    change(tensors)
    with safe_open(source, "pt") as file:
        save_file(tensors, target, metadata=file.metadata())
    return target


def test_pruned_directions_and_modules_are_left_out(trained, export, tiny_roberta, tmp_path):
    """A module without any triplet left is not adapted; the others have a rank each."""
    record = trained("adalora")[0]
    modules = sorted(record.epochs[-1]["report"]["ranks"])

    def prune(tensors: dict) -> None:
        for module, kept in zip(modules, (0, 1, 5, 12), strict=True):
            tensors[f"{module}.E"] = torch.arange(1.0, 13.0) * (torch.arange(12) % 12 >= 12 - kept)

    file = edited(trained.file(record, "last"), tmp_path / "pruned.safetensors", prune)
    assert export(run=file, to=tmp_path / "a")[0] == 0
    ranks = ranks_of(load_file(tmp_path / "a" / "adapter_model.safetensors"))
    assert ranks == dict(zip(modules[1:], (1, 5, 12), strict=True))
    assert gap(stock(tmp_path / "a", tiny_roberta), rebuilt(tiny_roberta, record, file), tiny_roberta) <= 1e-5


def test_regression_keeps_its_one_output(trained, export, tiny_roberta, tmp_path):
    """STS-B's head has one output, in the merged checkpoint's own config too."""
    record = trained("lora", "task=stsb", "epochs=1")[0]
    tensors = load_file(trained.file(record, "last"))
    assert (
        export(run=record.run_id, to=tmp_path / "a")[0]
        == export(run=record.run_id, to=tmp_path / "m", merged="true")[0]
    )
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "m").eval()
    adapter = peft.PeftModel.from_pretrained(plain(tiny_roberta, labels=1), tmp_path / "a").eval()
    assert merged.config.num_labels == 1 and merged.classifier.out_proj.bias.equal(tensors["classifier.out_proj.bias"])
    assert gap(adapter, merged, tiny_roberta) <= 1e-5


# ---- which epoch, which seeds


@pytest.fixture
def long(trained):
    """Two seeds of one run; the first has its best epoch before the last."""
    return trained("lora", *LONG)


@pytest.mark.parametrize("merged", ["false", "true"])
@pytest.mark.parametrize("which", ["best", "last", None])
def test_which_epoch(which, merged, long, export, tiny_roberta, tiny_data, tmp_path):
    """On the evaluation set, a stock library gets the score that the record has of that epoch; unsaid, it is the
    best."""
    assert export(run=long[0].run_id, to=tmp_path / "a", which=which, merged=merged)[0] == 0
    model = plain(tmp_path / "a") if merged == "true" else stock(tmp_path / "a", tiny_roberta)
    with (tiny_data / "sst2" / "validation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    x = AutoTokenizer.from_pretrained(tiny_roberta)(
        [row["sentence"] for row in rows], padding=True, return_tensors="pt"
    )
    found = model(**x).logits.argmax(1)
    right = sum(int(row["label"]) == guess for row, guess in zip(rows, found.tolist(), strict=True))
    best, end = best_epoch(long[0]), long[0].epochs[-1]
    entry = end if which == "last" else best
    assert best["epoch"] < end["epoch"] and best["metrics"] != end["metrics"]
    assert right / len(rows) == pytest.approx(entry["metrics"]["accuracy"])


def test_every_way_to_name_a_run(long, trained, export, tmp_path):
    """Record, adapter file, run id with and without seed: the same adapters; all seeds go to a folder each."""
    first, second = long
    name = first.run_id.removesuffix("-s0")
    ways = {
        "id": {"run": first.run_id, "which": "last"},
        "record": {"run": first.path(trained.root / "results"), "which": "last"},
        "file": {"run": trained.file(first, "last"), "output_dir": None},
        "all": {"run": name, "which": "last"},
    }
    for way, options in ways.items():
        code, out, _ = export(**options, to=tmp_path / way)
        assert code == 0 and out.count("wrote ") == (2 if way == "all" else 1)
    assert names(tmp_path / "all") == {"s0", "s1"}
    weights = [
        (tmp_path / way / "adapter_model.safetensors").read_bytes() for way in ("id", "record", "file", "all/s0")
    ]
    assert len(set(weights)) == 1
    head = load_file(tmp_path / "all" / "s1" / "adapter_model.safetensors")[f"{PREFIX}classifier.dense.weight"]
    assert torch.equal(head, load_file(trained.file(second, "last"))["classifier.dense.weight"])


# ---- the model card


@pytest.mark.parametrize("merged", ["false", "true"])
@pytest.mark.parametrize("which", ["best", "last"])
def test_model_card(which, merged, long, export, tiny_roberta, tmp_path):
    """It names paper, backbone, run, seed, commit and that epoch's scores, and its example loads the folder."""
    record = long[0]
    entry = record.epochs[-1] if which == "last" else best_epoch(record)
    export(run=record.run_id, to=tmp_path / "a", which=which, merged=merged)
    text = (tmp_path / "a" / "README.md").read_text()
    rows = dict(re.findall(r"^\| ([^|]+) \| (.*) \|$", text, re.MULTILINE))
    assert "https://arxiv.org/abs/2106.09685" in rows["method"] and "Hu et al." in rows["method"]
    assert re.search(r"\br 8, alpha 16, lora_dropout 0\b", rows["settings"])
    assert rows["backbone"] == f"tiny, weights sha256 {record.model['sha256']}"
    assert (rows["task"], rows["seed"], rows["epoch"]) == ("sst2", "0", f"{entry['epoch']} of 12")
    assert rows["scores on the evaluation set"] == f"accuracy {entry['metrics']['accuracy']:.4f}"
    assert rows["run"] == f"{record.run_id}, config hash {record.config_hash}"
    commit = record.git["commit"] or "unknown"
    assert rows["melora_bench commit"] == commit + " with local changes" * bool(record.git["dirty"])
    assert text.startswith(f"---\nlibrary_name: {'transformers' if merged == 'true' else 'peft'}\n---\n")
    scope = {}
    example = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1].replace("this folder", str(tmp_path / "a"))
    exec(example.replace("the backbone's folder", str(tiny_roberta)), scope)
    loaded = stock(tmp_path / "a", tiny_roberta) if merged == "false" else plain(tmp_path / "a")
    assert gap(scope["model"], loaded, tiny_roberta) == 0


@pytest.mark.parametrize("merged", ["false", "true"])
def test_the_base_that_a_folder_names(merged, long, export, tiny_roberta, tmp_path, monkeypatch):
    """Never a folder of this machine: the name that is given, the hub's of the same weights, or none; no file of the
    export holds a path."""
    run = {"run": long[0].run_id, "merged": merged}
    monkeypatch.setattr("melora_bench.adapters.card.PUBLIC", {long[0].model["sha256"]: "somebody/public"})
    assert export(**run, to=tmp_path / "public")[0] == 0
    assert export(**run, to=tmp_path / "given", base=tiny_roberta)[0] == 0
    monkeypatch.setattr("melora_bench.adapters.card.PUBLIC", {})
    assert export(**run, to=tmp_path / "none")[0] == 0
    for place, base in (("public", "somebody/public"), ("given", str(tiny_roberta)), ("none", None)):
        text = (tmp_path / place / "README.md").read_text()
        assert (f"base_model: {json.dumps(base)}\n" in text) == (base is not None)
        if merged == "false":
            config = json.loads((tmp_path / place / "adapter_config.json").read_text())
            assert (config["base_model_name_or_path"], config["revision"]) == (base, None)
    for path in [*(tmp_path / "public").iterdir(), *(tmp_path / "none").iterdir()]:
        assert str(tiny_roberta).encode() not in path.read_bytes()
    if merged == "false":  # the example of a folder that names its base
        text = (tmp_path / "given" / "README.md").read_text()
        scope = {}
        exec(
            re.search(r"```python\n(.*?)```", text, re.DOTALL)[1].replace("this folder", str(tmp_path / "given")), scope
        )
        assert gap(scope["model"], stock(tmp_path / "none", tiny_roberta), tiny_roberta) == 0


@pytest.fixture(scope="module")
def tiny_bert(tiny_roberta, tmp_path_factory):
    """A checkpoint folder of a random BERT, under the tiny tokenizer."""
    folder = tmp_path_factory.mktemp("tiny_bert")
    AutoTokenizer.from_pretrained(tiny_roberta).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(WORDS) + 4, max_position_embeddings=66, pad_token_id=1, **sizes)
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("merged", ["false", "true"])
def test_a_head_that_reads_means_computes_by_its_card(kind, merged, trained, export, tiny_bert, tiny_roberta, tmp_path):
    """The card's code gives our logits, row by row, with a stock library's model; without it the head reads other
    features."""
    folder = tiny_bert if kind == "bert" else tiny_roberta
    overrides = [f"backbone.path={folder}", f"backbone.name={kind}", "backbone.pooling=mean"]
    record = trained("melora", "method.n=2", "backbone.target_modules=[query,value]", *overrides)[0]
    code, *_ = export(run=record.run_id, to=tmp_path / "a", merged=merged, **{"backbone.path": folder})
    assert code == 0
    example = re.search(r"```python\n(.*?)```", (tmp_path / "a" / "README.md").read_text(), re.DOTALL)[1]
    scope = {}
    exec(example.replace("this folder", str(tmp_path / "a")).replace("the backbone's folder", str(folder)), scope)
    ours = load(trained.file(record, "best"), str(folder)).model
    x = texts(folder)
    with torch.no_grad():
        expected = ours(**x).logits
        assert (scope["logits"](**x) - expected).abs().max() < 1e-5
        assert (scope["model"](**x).logits - expected).abs().max() > 1e-3


@pytest.mark.slow
def test_the_embedded_weights_have_a_public_name():
    """What the default backbone's adapters name as their base is the hub's repository of the same bytes."""
    backbone = build(composed(["backbone=minilm"]).backbone, "backbone")
    assert base_name(backbone, None) == "sentence-transformers/all-MiniLM-L6-v2"


@pytest.mark.parametrize("name", examples_first(METHODS))
def test_model_card_names_the_paper(name, trained, export, tmp_path):
    """The link stands in the card of every method whose file has one in its first line; the baselines have none."""
    record = trained(name)[0]
    outcome = export(run=record.run_id, to=tmp_path / "a", merged="true")
    if is_refused(name, {"factors", "matrix"}, record, outcome):
        return
    text = (tmp_path / "a" / "README.md").read_text()
    module = composed([f"method={name}"]).method._target_.rpartition(".")[0]
    first = (ROOT / f"{module.replace('.', '/')}.py").read_text().splitlines()[0]
    links = re.findall(r"https://arxiv\.org/abs/\d{4}\.\d{5}", first)
    assert text.count("arxiv.org") == len(links) and all(link in text for link in links)
    assert bool(links) == (name not in ("full", "head", "mplora", "multi_lora", "share_lora"))
    assert ("NeurIPS 2024 workshop FITML" in text) == (name in ("mplora", "multi_lora", "share_lora"))


# ---- bad input


def everything(folder) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def refused(export, tmp_path):
    """refused(pattern, ...): export's only output is one line that `pattern` finds; nothing below tmp_path changed."""

    def check(pattern: str, **options) -> None:
        before = everything(tmp_path)
        code, out, err = export(**{"to": tmp_path / "a", **options})
        assert code == 1 and out == ""
        assert re.fullmatch(r"error: [^\n]{1,600}\n", err) and re.search(pattern, err), err
        assert everything(tmp_path) == before

    return check


def test_options(export, tmp_path):
    """An unknown option is named, with the nearest and all that there are."""
    code, out, err = export(run="x", to=tmp_path / "a", merge="true")
    assert (
        code == 2
        and out == ""
        and err.startswith("error: merge is no option of this command: did you mean merged? it has run=, to=")
    )
    assert names(tmp_path) == set()


@pytest.mark.parametrize(
    "options", [{"run": "x"}, {"to": "a"}, {"run": "x", "to": ""}, {"run": "x", "to": "a", "merged": "maybe"}]
)
def test_options_left_out(options, export, tmp_path, monkeypatch):
    """Without run= or to=, or with merged= neither true nor false, the line says how it is done."""
    monkeypatch.chdir(tmp_path)
    code, out, err = export(**options)
    assert code == 2 and out == "" and "run=RUN to=DIR" in err and names(tmp_path) == set()


@pytest.mark.parametrize("which", ["nonsense", "", "BEST", "../best"])
def test_unknown_which(which, long, refused):
    refused(r"which='.*' is unknown: use best or last", run=long[0].run_id, which=which)


def test_target_that_exists(long, export, refused, tmp_path):
    """A folder with something in it and a file are refused and kept; an empty folder is filled."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    refused(r"to=.*full exists: name a new folder", run=long[0].run_id, to=tmp_path / "full")
    refused(r"to=.*mine exists: name a new folder", run=long[0].run_id, to=tmp_path / "full" / "mine")
    (tmp_path / "empty").mkdir()
    assert export(run=long[0].run_id, to=tmp_path / "empty")[0] == 0 and len(names(tmp_path / "empty")) == 3


def test_target_of_several_seeds_that_exists(long, refused, tmp_path):
    """One seed's folder being taken, the other seed is not written either."""
    (tmp_path / "a" / "s1").mkdir(parents=True)
    (tmp_path / "a" / "s1" / "mine").write_text("mine")
    refused(r"to=.*a exists", run=long[0].run_id.removesuffix("-s0"))


def test_target_of_several_seeds_that_is_a_file(long, refused, tmp_path):
    (tmp_path / "a").write_text("mine")
    refused(r"to=.*a\b", run=long[0].run_id.removesuffix("-s0"))


@pytest.mark.parametrize(
    "run",
    [
        "adhoc/sst2/lora-0123456789",
        "adhoc/sst2/lora-0123456789-s0",
        "nothing.json",
        "nothing.safetensors",
        "/nothing/lora-0123456789",
    ],
)
def test_run_that_does_not_exist(run, refused):
    refused(r"nothing|lora-0123456789.* does not exist: run= takes a record", run=run)


def test_record_without_adapters(long, refused, trained, tmp_path):
    """A record alone, as version control has it, cannot be exported."""
    path = long[0].path(trained.root / "results")
    refused(rf"{long[0].run_id}/best\.safetensors does not exist", run=path, output_dir=tmp_path)


def test_edited_record(long, refused, trained, tmp_path):
    path = long[0].path(trained.root / "results")
    copy = tmp_path / "sst2" / path.name
    copy.parent.mkdir()
    copy.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    refused("was edited: its contents do not match its own hashes", run=copy)
    copy.write_text("{")
    refused("is not valid JSON", run=copy)


def test_other_backbone_weights(long, refused, tiny_roberta, tmp_path, monkeypatch):
    """One changed number in the backbone is noticed; so is a backbone that is not there."""
    other = shutil.copytree(tiny_roberta, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    next(iter(tensors.values())).view(-1)[0] += 1e-3
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    refused(
        r"was trained on another backbone than .*other holds .weights: ", run=long[0].run_id, **{"backbone.path": other}
    )
    refused(r"holds no config\.json", run=long[0].run_id, **{"backbone.path": tmp_path})
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    refused(r"cannot fetch FacebookAI/roberta-base", run=long[0].run_id, **{"backbone.path": None})


def test_adapter_files_that_are_none(long, trained, refused, tiny_roberta, tmp_path):
    """A file from elsewhere, a truncated one, and one of other tensors."""
    source, file = trained.file(long[0], "best"), tmp_path / "x.safetensors"
    refused("does not say which run it is of", run=tiny_roberta / "model.safetensors")
    for length in (0, 4, 500, source.stat().st_size - 1):
        file.write_bytes(source.read_bytes()[:length])
        refused(r"x\.safetensors is not a readable adapter", run=file)
    edited(source, file, lambda tensors: tensors.pop("classifier.dense.bias"))
    refused(r"another method's adapter or another backbone's \(classifier\.dense\.bias\)", run=file)
    edited(source, file, lambda tensors: tensors.update({"classifier.dense.bias": torch.zeros(31)}))
    refused(r"classifier\.dense\.bias is \(31,\) in .*, here \(32,\)", run=file)


def test_second_seed_broken(long, trained, refused, tmp_path):
    """A set of seeds with one unreadable file is refused before the first is written."""
    runs = tmp_path / "outputs" / "runs" / "adhoc" / "sst2"
    for record in long:
        shutil.copytree(trained.file(record, "best").parent, runs / record.run_id.split("/")[-1])
    file = runs / long[1].run_id.split("/")[-1] / "best.safetensors"
    file.write_bytes(file.read_bytes()[:500])
    refused("s1/best.safetensors is not a readable", run=long[0].run_id[:-3], output_dir=tmp_path / "outputs")


# ---- failures while writing


@pytest.mark.parametrize(
    "error", [OSError("no space left"), KeyboardInterrupt()], ids=lambda error: type(error).__name__
)
@pytest.mark.parametrize(
    ("broken", "merged", "to"),
    [
        ("peft_format.save_file", "false", "a"),
        ("export.merge", "true", "a"),
        ("export.adapter_card", "false", "a"),
        ("export.merged_card", "true", "a"),
        ("export.difference", "false", "a"),
        ("peft_format.save_file", "false", "new/a"),
    ],
)
def test_failure_while_writing_leaves_nothing(broken, merged, to, error, long, export, tmp_path, monkeypatch):
    """Whatever step fails, neither the folder nor a part of it stays."""
    reached = []

    def fail(*arguments, **options):
        reached.append(broken)
        if broken == "peft_format.save_file":
            arguments[1].write_bytes(b"half")
        raise error

    monkeypatch.setattr(f"melora_bench.adapters.{broken}", fail)
    with contextlib.suppress(OSError, KeyboardInterrupt):
        assert export(run=long[0].run_id, to=tmp_path / to, merged=merged)[0] != 0
    assert reached == [broken] and names(tmp_path) == set()


def test_failure_of_the_disk_is_one_line(long, refused, monkeypatch):
    def fail(*arguments, **options):
        raise OSError("no space left")

    monkeypatch.setattr("melora_bench.adapters.peft_format.save_file", fail)
    refused("no space left", run=long[0].run_id)


def test_wrong_factors_are_noticed(long, refused, monkeypatch):
    """Factors that make another function are not written: the stock library's logits are compared with ours."""

    def scaled(layers, replica):
        config, tensors = to_peft(layers, replica)
        return config, {key: value * (1.5 if "lora_B" in key else 1.0) for key, value in tensors.items()}

    monkeypatch.setattr("melora_bench.adapters.peft_format.to_peft", scaled)
    refused(r"logits of a stock library differ from ours by \d\.\de-0\d, nothing written", run=long[0].run_id)


def test_wrong_merge_is_noticed(long, refused, monkeypatch):
    def shifted(model, replica):
        found = merge(model, replica)
        found.roberta.encoder.layer[0].attention.self.value.weight.data *= 1.5
        return found

    monkeypatch.setattr("melora_bench.adapters.export.merge", shifted)
    refused(r"logits of a stock library differ from ours by .*, nothing written", run=long[0].run_id, merged="true")


def test_without_peft_it_says_so(long, export, tmp_path, monkeypatch):
    """PEFT is needed to check an adapter, not to write it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, out, _ = export(run=long[0].run_id, to=tmp_path / "a")
    assert code == 0 and "not checked, as peft is not installed" in out and len(names(tmp_path / "a")) == 3


def test_usage_is_the_docstring():
    """README and usage name options that exist."""
    assert set(re.findall(r"([\w.]+)=", command.__doc__)) == set(command.OPTIONS)
