"""Full fine-tuning against a plain transformers model, layer by layer, and one seed at a time."""

import pytest
import torch
from conftest import run_point
from method_helpers import batches, build
from transformers import AutoModelForSequenceClassification

from melora_bench.adapters.files import trainable
from melora_bench.methods.full import FullFineTuning
from melora_bench.records import records
from melora_bench.training.run import RunError


def test_full_equals_plain_fine_tuning(tiny_roberta):
    """24 AdamW steps in float64 give the losses of the plain model, whose tensors all carry a gradient."""
    ours, _ = build(tiny_roberta, "full", [0])
    plain = AutoModelForSequenceClassification.from_pretrained(tiny_roberta, num_labels=2).eval()
    for part in ("dense", "out_proj"):
        layer, target = ours.classifier.get_submodule(part), plain.classifier.get_submodule(part)
        target.weight.data, target.bias.data = layer.weight[0].data.clone(), layer.bias[0].data.clone()
    ours, plain = ours.double(), plain.double()
    assert sum(value.numel() for value in trainable(ours).values()) == sum(
        value.numel() for value in plain.parameters()
    )
    losses = []
    for model in (ours, plain):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
        losses.append([])
        for batch, labels in batches():
            loss = torch.nn.functional.cross_entropy(model(**batch).logits, labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-10)
    assert losses[0][0] > losses[0][-1]


def test_named_modules_alone_are_trained(tiny_roberta):
    model, _ = build(tiny_roberta, "full", [0], "method.target_modules=[layer.1]")
    backbone = [name for name in trainable(model) if not name.startswith("classifier.")]
    assert backbone and all(name.startswith("roberta.encoder.layer.1.") for name in backbone)
    assert len(backbone) == len(list(model.roberta.encoder.layer[1].parameters()))


@pytest.mark.parametrize("names", ["[layer.7]", "[]", "[layer.1,nonsense]"])
def test_a_name_without_parameters_is_refused(tiny_roberta, names):
    with pytest.raises(ValueError, match=r"target_modules=.*names no module of this model"):
        build(tiny_roberta, "full", [0], f"method.target_modules={names}")


def test_two_seeds_side_by_side_are_refused(tiny_roberta):
    with pytest.raises(ValueError, match=r"cannot train seeds=\[0, 1\] side by side"):
        build(tiny_roberta, "full", [0, 1])


def test_a_run_of_several_seeds_trains_them_one_after_another(tiny_overrides):
    paths = run_point([*tiny_overrides, "method=full", "seeds=[0,1]", "lr=1e-3"])
    found = [records.load(path) for path in paths]
    assert [(record.seed, record.packed_with) for record in found] == [(0, []), (1, [])]
    assert found[0].epochs[-1]["train_loss"] != found[1].epochs[-1]["train_loss"]
    assert found[0].params["adapter"] > 10 * found[0].params["head"] > 0


def test_a_seed_that_diverges_leaves_the_others_alone(tiny_overrides, tmp_path, monkeypatch):
    """Seed 0 fails, seed 1 still gets its record, and only seed 0 has an error."""
    real = FullFineTuning.before_forward

    def poison(self, step):
        if self.first == 0 and step == 2:
            next(iter(self.poisoned)).data.fill_(float("nan"))
        real(self, step)

    def attach(self, model, head, seeds, total_steps):
        original(self, model, head, seeds, total_steps)
        self.first, self.poisoned = seeds[0], [value for value in model.parameters() if value.requires_grad]

    original = FullFineTuning.attach
    monkeypatch.setattr(FullFineTuning, "attach", attach)
    monkeypatch.setattr(FullFineTuning, "before_forward", poison)
    with pytest.raises(RunError, match=r"seed 0 stopped at step 2"):
        run_point([*tiny_overrides, "method=full", "seeds=[0,1]", "lr=1e-3"])
    assert [records.load(path).seed for path in (tmp_path / "results").rglob("*.json")] == [1]
    assert [path.parent.name[-2:] for path in (tmp_path / "outputs").rglob("error.txt")] == ["s0"]
