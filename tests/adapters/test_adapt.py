"""`melora_bench.adapt`: any torch model under a method, in a loop of one's own."""

import doctest
import json
import re
import subprocess
import sys

import peft
import pytest
import torch
from conftest import run_point
from torch import nn
from transformers import AutoModelForSequenceClassification

import melora_bench
from melora_bench import adapt
from melora_bench.files import ROOT
from melora_bench.methods.adalora import AdaLoRA

TARGETS = ["query", "value"]


@pytest.fixture
def model(tiny_roberta):
    """model(): the tiny classifier, its own head the same each time."""

    def make() -> nn.Module:
        torch.manual_seed(0)
        return AutoModelForSequenceClassification.from_pretrained(tiny_roberta, num_labels=2).eval()

    return make


def rows() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(4, 20, (6, 9), generator=torch.Generator().manual_seed(0))}


def train(model: nn.Module, adapter, steps: int = 4) -> None:
    optimizer = torch.optim.AdamW(adapter.param_groups(lr=0.02))
    for step in range(steps):
        adapter.before_step(step)
        (model(**rows()).logits.square().mean() + adapter.penalty()).backward()
        optimizer.step()
        adapter.after_step(optimizer)
        optimizer.zero_grad()


def test_the_page_is_a_program(tmp_path, monkeypatch):
    """Its blocks run one after another; stock peft and the merged model give our logits, and AdaLoRA ends at its
    target."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text(), re.DOTALL)
    assert len(blocks) == 4
    values: dict = {}
    torch.manual_seed(0)
    for block in blocks:
        exec(block, values)
    assert torch.allclose(values["ours"], values["theirs"], atol=1e-6)
    assert torch.allclose(values["ours"], values["alone"], atol=1e-6)
    untrained = values["transformers"].RobertaForSequenceClassification.from_pretrained("backbone").eval()
    assert not torch.allclose(values["ours"], untrained(**values["batches"][0]).logits, atol=1e-5)
    ranks = values["adapter"].method.report(0)["ranks"]
    assert sum(ranks.values()) == 8 * 4


def test_docstrings():
    for name in ("adapters.adapt", "methods.attach"):
        __import__(f"melora_bench.{name}")
        result = doctest.testmod(sys.modules[f"melora_bench.{name}"], optionflags=doctest.ELLIPSIS)
        assert result.attempted > 0 and result.failed == 0


def test_importing_the_package_needs_no_torch():
    code = "import sys, melora_bench\nassert 'adapt' in dir(melora_bench)\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = melora_bench.nothing


@pytest.mark.parametrize("method", ["lora", "melora", "vera", "delta_lora", "dylora"])
def test_a_saved_folder_is_read_by_stock_peft_and_by_load(model, method, tmp_path):
    """With a trained head; the folder of one method is refused for another."""
    ours = model()
    adapter = adapt(ours, method, target_modules=TARGETS, head="classifier", total_steps=20)
    train(ours, adapter)
    ours.eval()
    adapter.save(tmp_path / "a", base="somebody/tiny")
    assert (
        json.loads((tmp_path / "a" / "adapter_config.json").read_text())["base_model_name_or_path"] == "somebody/tiny"
    )
    with torch.no_grad():
        logits = ours(**rows()).logits
        assert not torch.allclose(logits, model()(**rows()).logits, atol=1e-2)
        stock = peft.PeftModel.from_pretrained(model(), tmp_path / "a").eval()
        assert torch.allclose(stock(**rows()).logits, logits, atol=1e-5)
        assert torch.allclose(adapter.merge()(**rows()).logits, logits, atol=1e-5)
        again = model()
        adapt(again, method, target_modules=TARGETS, head="classifier", total_steps=20, seed=7).load(tmp_path / "a")
        assert torch.equal(again.eval()(**rows()).logits, logits)
    with pytest.raises(ValueError, match=r"was saved by adapt\(\) with .*'r': .* this model has .*'r': 3"):
        adapt(model(), method, r=3, target_modules=TARGETS, head="classifier", total_steps=20).load(tmp_path / "a")


def test_a_peft_adapter_is_loaded(model, tmp_path):
    """The update of a stock adapter, whatever its alpha."""
    torch.manual_seed(0)
    stock = peft.get_peft_model(model(), peft.LoraConfig(r=4, lora_alpha=7, target_modules=TARGETS)).eval()
    for name, value in stock.named_parameters():
        if "lora_B" in name:
            value.data.normal_()
    stock.save_pretrained(tmp_path / "stock")
    ours = model()
    adapt(ours, "lora", r=4, target_modules=TARGETS).load(tmp_path / "stock")
    assert torch.allclose(ours.eval()(**rows()).logits, stock(**rows()).logits, atol=1e-5)
    assert not torch.allclose(model()(**rows()).logits, stock(**rows()).logits, atol=1e-3)


def test_initial_values_are_those_of_a_run(model):
    """The head's too; the model's own generator is left alone."""
    found = []
    for noise in (1, 2):
        ours = model()
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        adapt(ours, "lora", target_modules=TARGETS, head="classifier", seed=5)
        assert torch.equal(torch.get_rng_state(), before)
        found.append([value.clone() for value in ours.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_float64_models_train_and_merge_in_float64(model):
    ours = model().double()
    adapter = adapt(ours, "vera", target_modules=TARGETS, head="classifier")
    assert {value.dtype for value in ours.state_dict().values()} == {torch.float64}
    train(ours, adapter)
    assert torch.allclose(adapter.merge()(**rows()).logits, ours.eval()(**rows()).logits, atol=1e-5)


def test_lora_plus_has_two_rates_and_the_head_its_own(model):
    adapter = adapt(model(), "lora_plus", lr_ratio=4, target_modules=TARGETS, head="classifier")
    groups = adapter.param_groups(lr=0.5, head_lr=0.25)
    assert [(group["lr"], len(group["params"])) for group in groups] == [(0.5, 4), (2.0, 4), (0.25, 4)]
    assert sum(len(group["params"]) for group in groups) == len(adapter.parameters())


def test_hooks_come_in_the_trainers_order(model, tiny_overrides, monkeypatch):
    """AdaLoRA in the page's loop and in a run of as many steps: the same calls with the same steps."""
    calls: list[tuple] = []
    for name in ("before_forward", "penalty", "after_optimizer_step"):
        real = getattr(AdaLoRA, name)

        def spy(self, *arguments, name=name, real=real):
            calls.append((name, *arguments[:1]))
            return real(self, *arguments)

        monkeypatch.setattr(AdaLoRA, name, spy)
    run_point([*tiny_overrides, "method=adalora", "method.delta_t=2", "epochs=2"])
    trainers, steps = calls.copy(), len(calls) // 3
    calls.clear()
    ours = model()
    adapter = adapt(ours, "adalora", delta_t=2, target_modules=TARGETS, head="classifier", total_steps=steps)
    train(ours, adapter, steps)
    assert steps == 10 and calls == trainers
    assert sum(adapter.method.report(0)["ranks"].values()) == 8 * 4


@pytest.mark.parametrize(
    ("method", "values", "message"),
    [
        ("meloras", {}, r"^method 'meloras' is unknown: did you mean 'melora'\?$"),
        ("zzz", {}, r"^method 'zzz' is unknown: there are adalora, .*, vera$"),
        ("lora", {"rnk": 3}, r"^rnk is unknown: there are alpha, init_a, lora_dropout, r, target_modules, version$"),
        ("lora", {"r": "8"}, r"^r=8 must be a whole number$"),
        (
            "lora",
            {"target_modules": ["qeury"]},
            r"'qeury' matches no linear layer; this model has dense, key, query, value$",
        ),
        (
            "lora",
            {"target_modules": None},
            r"^target_modules is missing: .* linear layers, dense, key, out_proj, query, value$",
        ),
        ("melora", {"n": 5}, r"n=5 must divide d_in=32"),
        ("adalora", {}, r"AdaLoRA would never prune"),
    ],
)
def test_what_cannot_be_is_refused_and_the_model_left_alone(model, method, values, message):
    ours = model()
    before = [(name, type(module)) for name, module in ours.named_modules()]
    with pytest.raises(ValueError, match=message):
        adapt(ours, method, **{"target_modules": TARGETS, "head": "classifier"} | values)
    assert [(name, type(module)) for name, module in ours.named_modules()] == before
    assert all(value.requires_grad for value in ours.parameters())


def test_a_hook_without_its_step_is_refused(model):
    adapter = adapt(model(), "lora", target_modules=TARGETS)
    with pytest.raises(ValueError, match=r"call before_step\(step\)"):
        adapter.after_step(torch.optim.SGD(adapter.parameters()))
