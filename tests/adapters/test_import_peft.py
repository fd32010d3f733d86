"""Training that starts from a PEFT LoRA adapter (`init_from`): the update must be the one that stock PEFT computes."""

import json
import re

import peft
import pytest
import torch
from conftest import run_point
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from melora_bench.adapters.export import export
from melora_bench.files import sha256_file
from melora_bench.methods.adalora import AdaLoRA
from melora_bench.records import records
from melora_bench.training.run import RunError

TARGETS = ["value", "intermediate.dense"]
LORA = ("lora", "mplora", "dylora", "lora_fa", "delta_lora")
PATTERN = {"layer.0.attention.self.value": 3, "^roberta.encoder.layer.1.intermediate.dense": 40, "dense": 7}
SCALE = 2.0  # alpha / r of our methods' defaults


@pytest.fixture
def started(tiny_overrides, tmp_path):
    """started(method, folder, ...): the records of seeds 0 and 1 that started at `folder` and hardly moved."""

    def run(method: str, source, *overrides: str) -> list[records.RunRecord]:
        targets = f"backbone.target_modules=[{','.join(TARGETS)}]"
        paths = run_point(
            [
                *tiny_overrides,
                f"method={method}",
                targets,
                "seeds=[0,1]",
                "epochs=1",
                "lr=1e-12",
                "max_train_rows=32",
                "max_eval_rows=8",
                f"init_from={source}",
                *overrides,
                *["method.start_step=0"] * (method == "delta_lora"),
            ]
        )
        return [records.load(path) for path in paths]

    return run


@pytest.fixture
def adapter(tiny_roberta, tmp_path):
    """adapter(...): a stock PEFT adapter with random factors, saved; its folder, and the change of each weight."""

    def make(kind=peft.LoraConfig, **options):
        torch.manual_seed(0)
        defaults = {"task_type": "SEQ_CLS", "target_modules": TARGETS, "r": 8}
        base = AutoModelForSequenceClassification.from_pretrained(tiny_roberta, num_labels=2)
        torch.manual_seed(0)
        model = peft.get_peft_model(base, kind(**(defaults | options)))
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.data.normal_()
        model.save_pretrained(tmp_path / "adapter")
        deltas = {
            name.removeprefix("base_model.model."): module.get_delta_weight("default").detach()
            for name, module in model.named_modules()
            if hasattr(module, "get_delta_weight")
        }
        return tmp_path / "adapter", deltas

    return make


def deltas_of(file) -> dict[str, torch.Tensor]:
    """What an adapter file of the LoRA kind adds to each weight."""
    tensors = load_file(file)
    products = {}
    for name in (key.removesuffix(".A") for key in tensors if key.endswith(".A")):
        products[name] = SCALE * tensors[f"{name}.B"] @ tensors[f"{name}.A"]
        if f"{name}.moved" in tensors:
            then = SCALE * tensors[f"{name}.B_K"] @ tensors[f"{name}.A_K"]
            products[name] += tensors[f"{name}.moved"] * (products[name] - then)
    return products


def check(found: dict, wanted: dict) -> None:
    assert found.keys() == wanted.keys() and len(wanted) == 4
    for name, value in wanted.items():
        assert value.abs().max() > 1e-3 and value.shape[0] in (32, 64)
        assert torch.allclose(found[name], value, rtol=1e-5, atol=1e-6), name


def last(tmp_path, record):
    return tmp_path / "outputs" / "runs" / record.run_id / "last.safetensors"


@pytest.mark.parametrize(
    ("method", "options"),
    [
        *((method, {"lora_alpha": 16}) for method in LORA),
        ("multi_lora", {"r": 16, "lora_alpha": 16}),
        ("lora", {"lora_alpha": 5}),
        ("lora", {"lora_alpha": 16, "use_rslora": True}),
        ("lora", {"lora_alpha": 16, "alpha_pattern": PATTERN}),
        ("multi_lora", {"r": 16, "lora_alpha": 5, "use_rslora": True, "alpha_pattern": PATTERN}),
        ("lora", {"r": 4, "lora_alpha": 16, "rank_pattern": {"value": 8, "dense": 8}}),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_update_is_the_one_of_stock_peft(method, options, adapter, started, tmp_path):
    """Both seeds start at PEFT's change of each weight, whatever its alpha; the record says where from."""
    folder, wanted = adapter(**options)
    found = started(method, folder)
    assert [record.seed for record in found] == [0, 1]
    sha256 = sha256_file(folder / "adapter_model.safetensors")
    for record in found:
        check(deltas_of(last(tmp_path, record)), wanted)
        config = sha256_file(folder / "adapter_config.json")
        assert record.init_from == {"source": str(folder), "sha256": sha256, "config_sha256": config, "run_id": None}
        assert record.config["init_from"] == str(folder)


def test_a_start_of_another_config_is_another_start(adapter, started):
    """The same factors under another alpha are another update: the records are not those of that run."""
    folder, _ = adapter()
    started("lora", folder)
    assert started("lora", folder) == []
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 64}))
    with pytest.raises(
        RunError, match=r"the record of other inputs \(config of the start: sha256 \w+ there, sha256 \w+ here"
    ):
        started("lora", folder)


def test_head_stays_fresh(adapter, started, tiny_roberta, tmp_path):
    """The adapter's head is not taken: seeds start at their own."""
    folder, _ = adapter()
    heads = [load_file(last(tmp_path, record))["classifier.dense.weight"] for record in started("lora", folder)]
    theirs = load_file(folder / "adapter_model.safetensors")["base_model.model.classifier.dense.weight"]
    assert not torch.allclose(heads[0], heads[1], atol=1e-3) and not torch.allclose(heads[0], theirs, atol=1e-3)


@pytest.mark.parametrize(
    ("source", "target", "overrides"),
    [
        ("lora", "lora", []),
        pytest.param("multi_lora", "multi_lora", [], marks=pytest.mark.slow),
        pytest.param("delta_lora", "multi_lora", [], marks=pytest.mark.slow),
        pytest.param("melora", "multi_lora", [], marks=pytest.mark.slow),
        ("melora", "lora", ["method.r=16", "method.alpha=32"]),
        pytest.param("adalora", "lora", ["method.r=12", "method.alpha=24"], marks=pytest.mark.slow),
    ],
)
def test_round_trip(source, target, overrides, started, tiny_overrides, tiny_roberta, tmp_path, monkeypatch):
    """An exported run is a start as good as any: of its own method, and of another that has the rank."""
    options = ["lr=0.02", "backbone.target_modules=[value,intermediate.dense]", "experiment=first"]
    options += ["method.start_step=5"] * (source == "delta_lora")
    if source == "adalora":  # unpruned, so that every module has the rank of the target's
        options += ["method.delta_t=1"]
        monkeypatch.setattr(AdaLoRA, "after_optimizer_step", lambda method, step, optimizer: None)
    [path] = run_point([*tiny_overrides, f"method={source}", *options])
    record, backbone = records.load(path), str(tiny_roberta)
    export(
        record.run_id,
        str(tmp_path / "a"),
        which="last",
        merged=False,
        output_dir=str(tmp_path / "outputs"),
        backbone_path=backbone,
    )
    base = AutoModelForSequenceClassification.from_pretrained(tiny_roberta, num_labels=2)
    stock = peft.PeftModel.from_pretrained(base, tmp_path / "a")
    wanted = {
        name.removeprefix("base_model.model."): module.get_delta_weight("default").detach()
        for name, module in stock.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    if source in (*LORA, "multi_lora"):
        check(deltas_of(tmp_path / "outputs" / "runs" / record.run_id / "last.safetensors"), wanted)
    for again in started(target, tmp_path / "a", *overrides):
        check(deltas_of(last(tmp_path, again)), wanted)


# ---- refused


@pytest.fixture
def refused(started, tmp_path):
    """refused(pattern, method, folder): one line that names the folder and that `pattern` finds; no record."""

    def expect(pattern: str, method: str, folder, *overrides: str) -> None:
        with pytest.raises(RunError) as caught:
            started(method, folder, *overrides)
        line = str(caught.value)
        assert re.match(rf"error: init_from: {re.escape(str(folder))}[ /]", line) and re.search(pattern, line), line
        assert "\n" not in line and "Error:" not in line and not (tmp_path / "results").exists()

    return expect


VALUE = r"roberta\.encoder\.layer\.0\.attention\.self\.value"


@pytest.mark.parametrize(
    ("method", "options", "pattern"),
    [
        (
            "lora",
            {"r": 4},
            rf"does not fit {VALUE}: factors of shapes \(32, 4\) and \(4, 32\) .* \(32, 8\) and \(8, 32\)",
        ),
        ("multi_lora", {"r": 8}, r"\(32, 8\) and \(8, 32\) do not fit, this method's are \(32, 16\) and \(16, 32\)"),
        (
            "lora",
            {"rank_pattern": {"layer.1.attention.self.value": 9}},
            r"does not fit \S+layer\.1\S+value: .* \(9, 32\)",
        ),
        ("lora", {"target_modules": ["value"]}, r"adapts 2 modules, this run 4: \S+dense is one of one side alone"),
        ("lora", {"target_modules": [*TARGETS, "query"]}, r"adapts 6 modules, this run 4: \S+query is one of"),
        ("lora", {"use_dora": True}, r"is LORA with use_dora"),
        ("lora", {"lora_bias": True}, r"is LORA with lora_bias"),
        ("lora", {"trainable_token_indices": [4]}, r"is LORA with trainable_token_indices"),
        ("vera", {"r": 256}, r"VeRALayer cannot start from another method's factors"),
        ("adalora", {"r": 12}, r"AdaLoRALayer cannot start from another method's factors"),
        ("melora", {"r": 16}, r"MELoRALayer cannot start from another method's factors"),
        ("share_lora", {"r": 8}, r"\(32, 8\) and \(8, 32\) do not fit, this method's are \(2, 32, 8\) and \(8, 32\)"),
        ("head", {}, r"adapts 4 modules, this run 0"),
        ("full", {}, r"adapts 4 modules, this run 0"),
    ],
)
def test_adapters_that_do_not_fit(method, options, pattern, adapter, refused):
    refused(pattern, method, adapter(**options)[0], *["epochs=4", "method.delta_t=1"] * (method == "adalora"))


def test_another_kind_of_adapter(adapter, refused):
    """VeRA's adapter is named as what it is."""
    folder, _ = adapter(peft.VeraConfig, target_modules=["value"])
    refused("is VERA, not LORA", "lora", folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({key: config[key] for key in config if key != "peft_type"}))
    refused("is None, not LORA", "lora", folder)


def test_files_that_are_missing_or_broken(adapter, refused, started):
    """No safetensors but a pickle; a config that is no JSON; weights cut short; no config at all."""
    folder, _ = adapter()
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    whole, text = weights.read_bytes(), config.read_text()
    weights.write_bytes(whole[:300])
    refused(r"adapter_model\.safetensors is not a readable adapter", "lora", folder)
    weights.unlink()
    torch.save({}, folder / "adapter_model.bin")
    refused(r"holds no adapter_model\.safetensors: save it with peft's save_pretrained", "lora", folder)
    weights.write_bytes(whole)
    for broken in (text[:-3].encode(), b"", b"\xff\xfe"):
        config.write_bytes(broken)
        refused(r"has an adapter_config\.json that is not JSON", "lora", folder)
    config.unlink()
    with pytest.raises(
        RunError, match=r"^error: init_from: .*last\.safetensors does not exist; .* PEFT LoRA adapter's$"
    ):
        started("lora", folder)


@pytest.mark.parametrize(
    "change",
    [{"config": [1]}, {"drop": "lora_alpha"}, {"drop_tensor": "lora_B"}],
    ids=lambda change: next(iter(change)),
)
def test_contents_that_lack_something(change, adapter, refused):
    folder, _ = adapter()
    file, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    content, tensors = json.loads(config.read_text()), load_file(file)
    content.pop(change.get("drop"), None)
    config.write_text(json.dumps(change.get("config", content)))
    lost = [key for key in tensors if change.get("drop_tensor", "nothing") in key][:1]
    save_file({key: value for key, value in tensors.items() if key not in lost}, file)
    refused("", "lora", folder)


@pytest.mark.parametrize(
    "options",
    [
        {"bias": "all"},
        {"modules_to_save": ["classifier", "LayerNorm"]},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_adapters_that_change_more_than_the_factors(options, adapter, refused):
    """Biases, other trained modules, and a base weight that PEFT changes when it loads the adapter, would be lost."""
    refused("", "lora", adapter(**options)[0])
