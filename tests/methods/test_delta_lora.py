"""Delta-LoRA against the literal loop in which W itself moves; its rank, its start and what it refuses."""

import pytest
import torch
from conftest import composed
from method_helpers import COMMON, STEPS, batches, build
from torch import nn
from torch.nn.functional import cross_entropy, linear
from transformers import AutoModelForSequenceClassification

from melora_bench.adapters.files import adapter_tensors, load_tensors, save_adapter, trainable
from melora_bench.methods.delta_lora import DeltaLoRA

K, SEEDS, RATIO = 5, [3, 5], 0.5
OWN = {"r": 8, "delta_ratio": RATIO, "start_step": K, "warmup_ratio": 0.06}
ADAMW = {"lr": 5e-3, "weight_decay": 0.1}


class Moving(nn.Module):
    """h = W x + s B A x of one replica, with a W that `move` changes; s = 2."""

    def __init__(self, base: nn.Linear, A: torch.Tensor, B: torch.Tensor) -> None:
        super().__init__()
        self.A, self.B = nn.Parameter(A.clone()), nn.Parameter(B.clone())
        self.W, self.bias = base.weight.detach().clone(), base.bias.detach()

    def move(self, before: torch.Tensor) -> None:
        """W += lambda s (B' A' - B A), `before` being B A."""
        self.W += RATIO * 2 * ((self.B @ self.A).detach() - before)

    def effective(self) -> torch.Tensor:
        return self.W + 2 * self.B @ self.A

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.W, self.bias) + 2 * (x @ self.A.T) @ self.B.T


def literal(folder, ours: nn.Module, method, replica: int) -> tuple[list[float], list[torch.Tensor]]:
    """The losses and the last effective weights of the literal loop, from the initial values of one replica of
    `ours`."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2).double().eval()
    model.requires_grad_(False)
    layers = []
    for name, layer in method.layers.items():
        layers.append(Moving(model.get_submodule(name), layer.A[replica].detach(), layer.B[replica].detach()))
        model.set_submodule(name, layers[-1])
    for part in ("dense", "out_proj"):
        head = ours.classifier.get_submodule(part)
        setattr(model.classifier, part, nn.Linear(*head.weight.shape[:0:-1], dtype=torch.float64))
        model.classifier.get_submodule(part).weight.data.copy_(head.weight[replica])
        model.classifier.get_submodule(part).bias.data.copy_(head.bias[replica])
    optimizer = torch.optim.AdamW(trainable(model).values(), **ADAMW)
    losses = []
    for step, (batch, labels) in enumerate(batches()):
        loss = cross_entropy(model(**batch).logits, labels)
        loss.backward()
        before = [(layer.B @ layer.A).detach() for layer in layers]
        optimizer.step()
        for layer, product in zip(layers, before, strict=True):
            if step > K:
                layer.move(product)
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, [layer.effective().detach() for layer in layers]


def train(model: nn.Module, method, replicas: int = 2, on_step=lambda step: None) -> torch.Tensor:
    """(STEPS, R) losses of the method's own loop on the same rows for every replica; `on_step` sees each step's
    start."""
    optimizer = torch.optim.AdamW(trainable(model).values(), **ADAMW)
    losses = []
    for step, (batch, labels) in enumerate(batches()):
        method.before_forward(step)
        on_step(step)
        logits = model(**{key: value.repeat(replicas, 1) for key, value in batch.items()}).logits
        loss = cross_entropy(logits, labels.repeat(replicas), reduction="none").view(replicas, -1).mean(1)
        loss.sum().backward()
        optimizer.step()
        method.after_optimizer_step(step, optimizer)
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses)


def delta_lora(folder, *overrides: str):
    model, method = build(folder, "delta_lora", SEEDS, f"method.start_step={K}", *overrides)
    return model.double(), method


@pytest.mark.parametrize(("ratio", "equal"), [(RATIO, True), (0, False)])
def test_delta_lora_is_the_literal_loop_with_a_moving_w(tiny_roberta, ratio, equal):
    """24 AdamW steps of two replicas in float64 agree to 1e-12, W moving after step 5; at lambda 0 they do not."""
    model, method = delta_lora(tiny_roberta, f"method.delta_ratio={ratio}")
    theirs = [literal(tiny_roberta, model, method, k) for k in range(2)]
    losses = train(model, method)
    assert len(losses) == STEPS >= 20
    for k, (others, weights) in enumerate(theirs):
        gap = (losses[:, k] - torch.tensor(others, dtype=torch.float64)).abs()
        assert gap[: K + 2].max() < 1e-14
        assert (gap.max() < 1e-12) == equal
        assert losses[-1, k] < losses[0, k]
        for layer, weight in zip(method.layers.values(), weights, strict=True):
            assert torch.allclose(layer.base.weight + layer.delta_weight()[k], weight, atol=1e-12, rtol=0) == equal


def test_up_to_step_k_it_is_lora(tiny_roberta):
    """Until W has moved, in step K + 1, losses differ from LoRA's by rounding at most; after it all do."""
    model, method = delta_lora(tiny_roberta)
    other, lora = build(tiny_roberta, "lora", SEEDS, "method.lora_dropout=0")
    products = {}

    def keep(name, layers):
        return lambda step: products.setdefault((name, step), [layer.delta_weight() for layer in layers.values()])

    losses = train(model, method, on_step=keep("delta", method.layers))
    others = train(other.double(), lora, on_step=keep("lora", lora.layers))
    gap = (losses - others).abs()
    assert gap[: K + 2].max() < 1e-14 and gap[K + 2 :].min() > 1e-7
    for step in range(STEPS):
        pairs = zip(products["delta", step], products["lora", step], strict=True)
        assert [torch.allclose(ours, theirs, atol=1e-12) for ours, theirs in pairs] == [step <= K + 1] * 4


def test_the_update_is_of_rank_2r_at_most(tiny_roberta):
    """Rank r before W moves, more than r and at most 2r after it: not the high rank that the paper says."""
    model, method = delta_lora(tiny_roberta, "method.r=4", "method.alpha=8")
    ranks = {}

    def keep(step: int) -> None:
        deltas = torch.stack([layer.delta_weight() for layer in method.layers.values()])
        ranks[step] = torch.linalg.matrix_rank(deltas.detach())

    train(model, method, on_step=keep)
    assert ranks[K + 1].eq(4).all()
    assert ranks[STEPS - 1].gt(4).all()
    assert all(found.le(8).all() for found in ranks.values())


def test_a_moved_adapter_goes_on_from_its_own_snapshot(tiny_roberta, tmp_path):
    """Replica 0 starts from a moved adapter, replica 1 afresh: step K + 1 takes 1's A and B, not 0's."""
    model, method = delta_lora(tiny_roberta)
    train(model, method)
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, model, 1, {"step": 9, "total_steps": 9, "run_id": "x"})
    saved = {name: value.float() for name, value in adapter_tensors(model, 1).items()}
    again, method = build(tiny_roberta, "delta_lora", SEEDS, f"method.start_step={K}", "method.delta_ratio=0.25")
    load_tensors(again, 0, path, head=False)
    for layer in method.layers.values():
        layer.B.data += torch.randn(layer.B.shape, generator=torch.Generator().manual_seed(0))
    before = [layer.delta_weight() for layer in method.layers.values()]
    for step in (0, K, K + 1, K + 1, K + 2):  # step K + 1 twice: two micro-batches
        method.before_forward(step)
    for (name, layer), delta in zip(method.layers.items(), before, strict=True):
        assert layer.moved.tolist() == [RATIO, 0.25]  # another ratio here does not shift what has moved
        assert torch.equal(layer.A_K[0], saved[f"{name}.A_K"]) and torch.equal(layer.B_K[0], saved[f"{name}.B_K"])
        assert not torch.equal(layer.A_K[0], layer.A[0]) and not torch.equal(layer.B_K[0], layer.B[0])
        assert torch.equal(layer.A_K[1], layer.A[1]) and torch.equal(layer.B_K[1], layer.B[1])
        assert torch.allclose(layer.delta_weight(), delta, atol=1e-4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lora_dropout": 0.05}, r"method\.lora_dropout=0\.05 must be 0"),
        ({"start_step": -1}, r"method\.start_step=-1 must be a whole number from 0 on, or null"),
        ({"start_step": 2.5}, r"method\.start_step=2\.5 must be a whole number"),
        ({"delta_ratio": -0.5}, r"method\.delta_ratio=-0\.5 must be a number from 0 on"),
        ({"delta_ratio": float("inf")}, r"method\.delta_ratio=inf must be"),
    ],
)
def test_values_that_make_no_sense_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        DeltaLoRA(**COMMON | OWN | values)


def test_a_start_beyond_the_run_is_refused(tiny_roberta):
    """The run that `build` prepares has 100 steps, 0 to 99."""
    assert build(tiny_roberta, "delta_lora", [0], "method.start_step=98")[1].report(0) == {"start_step": 98}
    with pytest.raises(ValueError, match=r"method\.start_step=99 leaves W still in all 100 steps"):
        build(tiny_roberta, "delta_lora", [0], "method.start_step=99")


@pytest.mark.parametrize(("warmup_ratio", "step"), [(0.06, 6), (0.061, 7), (0, 0)])
def test_a_start_of_null_is_the_end_of_the_warm_up(tiny_roberta, warmup_ratio, step):
    """ceil(warmup_ratio * steps), the warm-up of the learning rate; the run that `build` prepares has 100 steps."""
    _, method = build(tiny_roberta, "delta_lora", SEEDS, "method.start_step=null", f"warmup_ratio={warmup_ratio}")
    assert method.report(0) == method.report(1) == {"start_step": step}
    for now in range(step + 3):
        method.before_forward(now)
        assert [layer.moved.tolist() for layer in method.layers.values()] == [[RATIO * (now > step)] * 2] * 4


@pytest.mark.parametrize(
    ("task", "step"),
    [
        ("sst2", 400),
        ("mrpc", 10),
        ("cola", 100),
        ("qnli", 800),
        ("rte", 200),
        ("stsb", 200),
        ("mnli", None),
        ("qqp", None),
    ],
)
def test_the_papers_recipes_give_k_by_task(task, step):
    """Composed as a run would be; the command line still wins. MPLoRA's table has neither MNLI nor QQP."""
    for paper in ["melora", "mplora"] if step else ["melora"]:
        overrides = ["method=delta_lora", f"task={task}", f"recipe={paper}/${{task}}", "backbone=roberta_base"]
        assert composed(overrides).method.start_step == step
        assert composed([*overrides, "method.start_step=7"]).method.start_step == 7
