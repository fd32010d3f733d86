"""Adapters of causal language models: stock peft and transformers compute what our layers do, and their adapters start
runs."""

import functools
import json
import re

import datasets
import peft
import pytest
import torch
import transformers
from conftest import composed, run_point
from helpers import MERGED
from hydra.utils import instantiate
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaForCausalLM

from melora_bench.adapters.export import export
from melora_bench.adapters.peft_format import PREFIX
from melora_bench.records import records
from melora_bench.tasks.instruct import InstructTask
from melora_bench.training.run import RunError

METHODS = ["lora", "melora", "mplora"]
TRAINING = ("seeds=[0,1]", "epochs=3", "lr=0.05")


@pytest.fixture(scope="module")
def trained(tiny_llama, tiny_alpaca, tmp_path_factory):
    """trained(*overrides): the record of seed 1, its run made once."""
    root = tmp_path_factory.mktemp("trained")

    @functools.cache
    def run(*overrides: str) -> records.RunRecord:
        given = {
            "task": "alpaca",
            "backbone": "smollm2",
            "backbone.path": tiny_llama,
            "backbone.name": "tiny",
            "data": "local",
            "data.root": tiny_alpaca,
            "batch_size": 16,
            "results_dir": f"{root}/results",
            "output_dir": f"{root}/outputs",
        }
        paths = run_point([*(f"{key}={value}" for key, value in given.items()), *TRAINING, *overrides])
        return records.load(paths[-1])

    run.root = root
    return run


@pytest.fixture
def exported(trained, tiny_llama, tmp_path):
    """exported(record, merged): the folder written."""

    def write(record, merged: bool, backbone=tiny_llama):
        folder = tmp_path / f"merged-{merged}"
        export(
            record.run_id,
            str(folder),
            which="best",
            merged=merged,
            output_dir=f"{trained.root}/outputs",
            backbone_path=str(backbone),
        )
        return folder

    return write


def stock(adapter, backbone):
    return peft.PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(backbone), adapter).eval()


def ours(record, root, backbone):
    """Our own layers, attached for another seed, with every tensor of the best epoch put in by hand."""
    target = composed([f"method={record.choices['method']}"]).method._target_
    model = LlamaForCausalLM.from_pretrained(backbone)
    instantiate(record.config["method"] | {"_target_": target}).attach(model, "", [99], total_steps=100)
    state = model.state_dict()
    for name, value in load_file(root / "outputs" / "runs" / record.run_id / "best.safetensors").items():
        state[name].copy_(value.view_as(state[name]))
    return model.eval()


@torch.no_grad()
def gap(one, two, folder) -> float:
    """The largest difference of two models' logits over texts of unequal length, where there is text."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    x = tokenizer(["Say it again: the film was good", "the", "a dull plot always"], padding=True, return_tensors="pt")
    assert x["attention_mask"].min() == 0
    return ((one(**x).logits - two(**x).logits) * x["attention_mask"][..., None]).abs().max().item()


def row_by_row(model, path, tokenizer) -> float:
    """The mean loss over all target tokens of the validation rows, by a stock model, without padding."""
    task: InstructTask = instantiate(composed(["task=alpaca"]).task, _convert_="all")
    rows = datasets.Dataset.from_list(json.loads(path.read_text())).train_test_split(test_size=6, seed=42)["test"]
    total = count = 0
    for row in rows:
        ids = tokenizer(task.prompt(row) + row["output"])["input_ids"][:128]
        ids = torch.tensor([ids + [tokenizer.eos_token_id] * (len(ids) < 128)])
        with torch.no_grad():
            total += model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    return total / count


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_stock_peft_computes_what_we_do(method, trained, exported, tiny_llama, tiny_alpaca):
    """The logits agree, without the adapter they would not; the loss it has is the record's; no head is written."""
    record = trained(f"method={method}")
    folder = exported(record, merged=False)
    theirs = stock(folder, tiny_llama)
    assert gap(theirs, ours(record, trained.root, tiny_llama), tiny_llama) < 1e-6
    assert gap(theirs, LlamaForCausalLM.from_pretrained(tiny_llama), tiny_llama) > 1e-2
    best = records.best_epoch(record)["metrics"]["loss"]
    assert row_by_row(theirs, tiny_alpaca, AutoTokenizer.from_pretrained(tiny_llama)) == pytest.approx(best, abs=2e-6)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["task_type"] == "CAUSAL_LM" and config["modules_to_save"] is None
    modules = {f"model.layers.{layer}.self_attn.{part}_proj" for layer in (0, 1) for part in "qv"}
    assert set(config["target_modules"]) == modules
    names = {f"{PREFIX}{module}.lora_{part}.weight" for module in modules for part in "AB"}
    assert load_file(folder / "adapter_model.safetensors").keys() == names


@pytest.mark.parametrize("method", [*METHODS, "full"])
def test_transformers_alone_computes_what_we_do(method, trained, exported, tiny_alpaca, tiny_llama):
    """The merged checkpoint, with its own tokenizer, has the record's loss; its README loads it."""
    record = trained(f"method={method}", *["lr=0.01"] * (method == "full"))
    folder = exported(record, merged=True)
    assert {path.name for path in folder.iterdir()} == MERGED | {"generation_config.json"}
    scope = {}
    exec(
        re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1].replace(
            "this folder", str(folder)
        ),
        scope,
    )
    best = records.best_epoch(record)["metrics"]["loss"]
    assert row_by_row(scope["model"], tiny_alpaca, AutoTokenizer.from_pretrained(folder)) == pytest.approx(
        best, abs=2e-6
    )
    assert gap(scope["model"], LlamaForCausalLM.from_pretrained(tiny_llama), folder) > 1e-2
    if method != "full":
        assert gap(scope["model"], ours(record, trained.root, tiny_llama), folder) < 1e-6


def test_the_adapters_readme_loads_it(trained, exported, tiny_llama):
    folder = exported(trained("method=lora"), merged=False)
    text, scope = (folder / "README.md").read_text(), {}
    assert "AutoModelForCausalLM" in text and "num_labels" not in text
    example = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1].replace("this folder", str(folder))
    exec(example.replace("the backbone's folder", str(tiny_llama)), scope)
    assert gap(scope["model"], stock(folder, tiny_llama), tiny_llama) == 0


def test_full_fine_tuning_has_no_adapter(trained, exported, tmp_path):
    with pytest.raises(ValueError, match="changed the backbone itself, it has no adapter: export it with merged=true"):
        exported(trained("method=full", "lr=0.01"), merged=False)
    assert not list(tmp_path.iterdir())


def test_tied_embeddings_are_trained_and_merged_once(trained, exported, tiny_llama, tiny_alpaca, tmp_path):
    """The output layer is the embedding, as in SmolLM2: full fine-tuning moves both, the checkpoint holds one."""
    config = transformers.LlamaConfig.from_pretrained(tiny_llama, tie_word_embeddings=True)
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "tied")
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(tmp_path / "tied")
    record = trained("method=full", "lr=0.01", "backbone.name=tied", f"backbone.path={tmp_path}/tied")
    assert record.params["total"] == LlamaForCausalLM(config).num_parameters()
    folder = exported(record, True, tmp_path / "tied")
    model = LlamaForCausalLM.from_pretrained(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    best = records.best_epoch(record)["metrics"]["loss"]
    assert row_by_row(model, tiny_alpaca, AutoTokenizer.from_pretrained(folder)) == pytest.approx(best, abs=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("merged", [False, True])
def test_a_run_on_bf16_weights_is_exported_in_float32(merged, trained, exported, tiny_llama, tiny_alpaca):
    record = trained("method=lora", "precision=bf16", "backbone.dtype=bfloat16")
    folder = exported(record, merged)
    model = LlamaForCausalLM.from_pretrained(folder) if merged else stock(folder, tiny_llama)
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    found = row_by_row(model, tiny_alpaca, AutoTokenizer.from_pretrained(tiny_llama))
    assert found == pytest.approx(records.best_epoch(record)["metrics"]["loss"], abs=5e-3)
    assert gap(model, ours(record, trained.root, tiny_llama), tiny_llama) < 1e-6


# ---- starting from an adapter


def still(overrides, source, tmp_path, *more) -> dict[str, torch.Tensor]:
    """The tensors of a run that started at `source` and hardly moved."""
    run_point([*overrides, f"init_from={source}", "lr=1e-12", "epochs=1", *more])
    [file] = (tmp_path / "outputs").rglob("last.safetensors")
    return load_file(file)


def test_a_run_starts_at_a_peft_adapter(alpaca_overrides, tiny_llama, tmp_path):
    """Of stock peft, alpha unlike ours: our update is its change of each weight."""
    torch.manual_seed(0)
    options = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"], "r": 8, "lora_alpha": 5}
    model = peft.get_peft_model(LlamaForCausalLM.from_pretrained(tiny_llama), peft.LoraConfig(**options))
    for name, value in model.named_parameters():
        if "lora_B" in name:
            value.data.normal_()
    model.save_pretrained(tmp_path / "adapter")
    found = still(alpaca_overrides, tmp_path / "adapter", tmp_path)
    modules = {name.removeprefix(PREFIX): module for name, module in model.named_modules()}
    deltas = {
        name: module.get_delta_weight("default")
        for name, module in modules.items()
        if hasattr(module, "get_delta_weight")
    }
    assert len(deltas) == 4 and found.keys() == {f"{name}.{part}" for name in deltas for part in "AB"}
    for name, delta in deltas.items():
        assert delta.abs().max() > 0.1
        assert torch.allclose(2.0 * found[f"{name}.B"] @ found[f"{name}.A"], delta, atol=1e-5)


def test_an_exported_run_is_a_start(trained, exported, alpaca_overrides, tmp_path):
    """Of its own export, and of the run itself by its folder: without a head, all of it is taken."""
    record = trained("method=lora")
    source = load_file(trained.root / "outputs" / "runs" / record.run_id / "best.safetensors")
    folder = exported(record, merged=False)
    found = still(alpaca_overrides, folder, tmp_path)
    for name in {key.rsplit(".", 1)[0] for key in source}:
        products = (tensors[f"{name}.B"] @ tensors[f"{name}.A"] for tensors in (found, source))
        assert torch.allclose(*products, atol=1e-6)
    run = trained.root / "outputs" / "runs" / record.run_id
    places = [f"results_dir={tmp_path}/2", f"output_dir={tmp_path}/2"]
    run_point([*alpaca_overrides, f"init_from={run}", "lr=1e-12", "epochs=1", *places])
    [again] = (tmp_path / "2").rglob("last.safetensors")
    last, again = load_file(run / "last.safetensors"), load_file(again)
    assert again.keys() == last.keys() and all(torch.allclose(again[key], last[key], atol=1e-6) for key in last)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"modules_to_save": ["lm_head"]},
            r"holds base_model\.model\.lm_head\.weight, which is neither a factor of LoRA nor",
        ),
        (
            {"modules_to_save": ["model.norm"]},
            r"holds base_model\.model\.model\.norm\.weight, which is neither a factor",
        ),
        (
            {"target_modules": ["q_proj"]},
            r"adapts 2 modules, this run 4: model\.layers\.0\.self_attn\.v_proj is one of one side",
        ),
    ],
)
def test_an_adapter_that_holds_more_or_less_is_refused(options, message, alpaca_overrides, tiny_llama, tmp_path):
    """Without a head nothing beside the factors is let through."""
    given = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"], "r": 8} | options
    model = peft.get_peft_model(LlamaForCausalLM.from_pretrained(tiny_llama), peft.LoraConfig(**given))
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(RunError, match=rf"^error: init_from: {tmp_path}/adapter {message}"):
        run_point([*alpaca_overrides, f"init_from={tmp_path}/adapter"])
