"""Scores against numbers worked out by hand and against scikit-learn and scipy; losses that keep replicas apart."""

import dataclasses
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import composed, write_csv
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk
from transformers import AutoTokenizer

from melora_bench.tasks import metrics
from melora_bench.tasks.sources import LocalData
from melora_bench.tasks.splits import Split
from melora_bench.tasks.text import TextTask, halves

check = settings(deadline=None, derandomize=True)
ALL_SPLITS = ("train", "validation", "validation_matched", "validation_mismatched")


def task(name: str, **labels: list) -> TextTask:
    """The task of configs/task/<name>.yaml with splits of the given labels and no tokens."""
    made = instantiate(composed([f"task={name}"]).task, _convert_="all")
    for split, values in labels.items():
        array = np.asarray(values, dtype=np.float32 if made.num_labels == 1 else np.int64)
        offsets = np.arange(len(values) + 1)
        made.splits[split] = Split(ids=np.zeros(len(values)), types=None, offsets=offsets, labels=array, pad_id=0)
    return made


def one_hot(classes: list[int], count: int = 2) -> np.ndarray:
    """Logits whose highest entry is the given class."""
    return np.eye(count, dtype=np.float32)[classes] * 3 - 1


# ---- metrics

REFERENCES = np.array([1, 1, 1, 1, 1, 1, 0, 0, 0, 0])
PREDICTIONS = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 1])  # 4 true, 1 false positive; 3 true, 2 false negatives


def test_classification_by_hand():
    found = metrics.compute(["accuracy", "f1", "matthews"], PREDICTIONS, REFERENCES)
    assert found == {
        "accuracy": pytest.approx(7 / 10),
        "f1": pytest.approx(2 * 4 / (2 * 4 + 1 + 2)),
        "matthews": pytest.approx((4 * 3 - 1 * 2) / (5 * 6 * 4 * 5) ** 0.5),
    }


def test_regression_by_hand():
    """Deviations (-2, -1, 0, 1, 2) and (-2, 0, -1, 2, 1): products 4 + 0 + 0 + 2 + 2 over 10."""
    found = metrics.compute(["pearson", "spearman"], np.array([0.0, 2.0, 1.0, 4.0, 3.0]), np.arange(5.0))
    assert found == {"pearson": pytest.approx(0.8), "spearman": pytest.approx(0.8)}
    found = metrics.compute(["pearson", "spearman"], np.array([0.0, 1.0, 8.0]), np.arange(3.0))
    assert found == {"pearson": pytest.approx(8 / (2 * 38) ** 0.5), "spearman": pytest.approx(1.0)}


@pytest.mark.filterwarnings("ignore:A single label was found")
@settings(check, max_examples=40)
@given(st.integers(0, 10**6), st.integers(5, 40))
def test_metrics_are_those_of_the_libraries(seed, rows):
    source = np.random.default_rng(seed)
    classes, scores = source.integers(0, 2, (2, rows)), source.normal(size=(2, rows)).round(1)
    found = metrics.compute(["accuracy", "f1", "matthews"], *classes)
    predictions, references = classes
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(references, predictions))
    assert found["f1"] == pytest.approx(sk.f1_score(references, predictions, zero_division=0.0))
    assert found["matthews"] == pytest.approx(sk.matthews_corrcoef(references, predictions))
    found = metrics.compute(["pearson", "spearman"], *scores)
    assert found["pearson"] == pytest.approx(np.corrcoef(scores)[0, 1])
    assert found["spearman"] == pytest.approx(np.corrcoef([stats.rankdata(row) for row in scores])[0, 1])


def test_f1_is_of_class_one():
    assert metrics.compute(["f1"], np.array([1, 0]), np.array([1, 1])) == {"f1": pytest.approx(2 / 3)}
    assert metrics.compute(["f1"], np.array([0, 1]), np.array([0, 0])) == {"f1": 0.0}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("constant", [0, 1])
def test_constant_predictions_score_zero_without_a_warning(constant):
    classes = metrics.compute(["matthews"], np.full(10, constant), REFERENCES)
    scores = metrics.compute(["pearson", "spearman"], np.full(10, float(constant)), np.arange(10.0))
    assert classes | scores == {"matthews": 0.0, "pearson": 0.0, "spearman": 0.0}


def test_unknown_metric_is_refused():
    with pytest.raises(ValueError, match=r"metric 'bleu' is unknown: use one of accuracy, f1, matthews, pearson"):
        metrics.compute(["accuracy", "bleu"], PREDICTIONS, REFERENCES)


# ---- the two halves


@check
@given(st.lists(st.integers(0, 3), min_size=1, max_size=120))
def test_halves_share_every_label(labels):
    labels = np.array(labels)
    half = halves(labels)
    assert set(half) <= {0, 1}
    for label in set(labels):
        assert abs((half[labels == label] == 0).sum() - (half[labels == label] == 1).sum()) <= 1
    torch.manual_seed(len(labels))
    assert (halves(labels) == half).all()


@check
@given(st.integers(0, 1000), st.integers(20, 200))
def test_halves_share_every_range_of_scores(seed, rows):
    scores = np.random.default_rng(seed).uniform(0, 5, rows)
    half, ranks = halves(scores), stats.rankdata(scores)
    for low in range(0, rows, 10):
        inside = half[(ranks > low) & (ranks <= low + 10)]
        assert abs((inside == 0).sum() - (inside == 1).sum()) <= 1


def test_halves_are_these_rows_for_good():
    """Another torch or another line of code must not move rows: tables compare records of different days."""
    assert halves(np.zeros(8)).tolist() == [1, 0, 0, 1, 0, 1, 1, 0]
    assert halves(np.array([0, 1] * 6)).tolist() == [1, 0, 1, 1, 0, 0, 1, 0, 0, 1, 0, 1]
    blocked = np.repeat([0, 1], 200)  # files sorted by label: neither half is a stretch of the file
    assert 60 < halves(blocked)[:200:2].sum() + halves(blocked)[200::2].sum() < 140


# ---- scores of a task


def test_a_pair_task_scores_its_metrics():
    mrpc = task("mrpc", train=[0, 1], validation=REFERENCES)
    found = mrpc.score({"validation": one_hot(PREDICTIONS)})
    assert found == {"accuracy": 0.7, "f1": 0.727273}


def test_the_halves_are_scored_apart():
    mrpc = task("mrpc", train=[0], validation=REFERENCES)
    logits = {"validation": one_hot(PREDICTIONS)}
    half = halves(REFERENCES)
    right = PREDICTIONS == REFERENCES
    found = [mrpc.score(logits, half=k)["accuracy"] for k in (0, 1)]
    assert found == [pytest.approx(right[half == k].mean()) for k in (0, 1)]
    assert np.mean(found) == pytest.approx(0.7)  # the halves are equal in size here
    assert found[0] != found[1]


def test_cola_selects_on_matthews():
    found = task("cola", train=[0], validation=REFERENCES).score({"validation": one_hot(PREDICTIONS)})
    assert found == {"matthews": round(10 / 600**0.5, 6), "accuracy": 0.7}
    assert task("cola").metric == "matthews"


def test_stsb_scores_the_output_itself():
    labels, output = [0, 1.5, 3, 4.25, 5], [0.5, 1.0, 3.5, 3.0, 6.0]
    found = task("stsb", train=[0], validation=labels).score({"validation": np.array(output)[:, None]})
    assert found == {
        "pearson": round(stats.pearsonr(labels, output).statistic, 6),
        "spearman": 0.9,
    }


@pytest.mark.parametrize("half", [None, 0, 1])
def test_mnli_is_the_mean_of_both_sets(half):
    """Ten matched and four mismatched rows: the mean over sets, not over rows."""
    matched, mismatched = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0], [2, 1, 0, 2]
    mnli = task("mnli", train=[0], validation_matched=matched, validation_mismatched=mismatched)
    guesses = {"validation_matched": [0, 1, 2, 0, 1, 2, 0, 0, 0, 1], "validation_mismatched": [2, 2, 1, 1]}
    found = mnli.score({name: one_hot(classes, 3) for name, classes in guesses.items()}, half=half)
    if half is None:
        assert found == {"accuracy_matched": 0.7, "accuracy_mismatched": 0.25, "accuracy": 0.475}
    else:
        both = [found["accuracy_matched"], found["accuracy_mismatched"]]
        assert found["accuracy"] == pytest.approx(np.mean(both), abs=1e-6)
    assert set(found) == {"accuracy_matched", "accuracy_mismatched", "accuracy"}
    assert mnli.metric == "accuracy_matched"  # which selects, as in MELoRA's official code


# ---- loading


def mnli_files(root, splits: list[str]) -> LocalData:
    for split in splits:
        rows = [("a film", "good", 0), ("the plot", "never", 1), ("an actor", "fine", 2), ("bad", "dull", 1)]
        write_csv(root / "mnli" / f"{split}.csv", [("premise", "hypothesis", "label"), *rows])
    return LocalData(root=str(root), splits={name: name for name in ALL_SPLITS})


def load(made: TextTask, source: LocalData, folder, **limits) -> dict:
    limits = {"max_length": 16, "max_train_rows": None, "max_eval_rows": None} | limits
    return made.load(source, AutoTokenizer.from_pretrained(folder), **limits)


def test_mnli_with_the_matched_set_alone_scores_that_one(tmp_path, tiny_roberta, caplog):
    mnli = task("mnli")
    origins = load(mnli, mnli_files(tmp_path, ["train", "validation_matched"]), tiny_roberta)
    assert origins["validation_mismatched"] is None
    assert origins["validation_matched"]["rows"] == 4
    assert len(caplog.messages) == 1
    assert "mnli: the validation_mismatched set is missing" in caplog.text
    found = mnli.score({"validation_matched": one_hot([0, 1, 2, 0], 3)})
    assert found == {"accuracy_matched": 0.75, "accuracy": 0.75}


@pytest.mark.parametrize(
    ("metric", "there", "missing"),
    [
        ("accuracy_matched", "mismatched", "matched"),
        ("accuracy_mismatched", "matched", "mismatched"),
        ("accuracy", "matched", "mismatched"),
        ("accuracy", "mismatched", "matched"),
    ],
)
def test_a_set_that_the_selecting_metric_needs_is_not_optional(metric, there, missing, tmp_path, tiny_roberta):
    """The mean over sets needs all of them, one set's metric that set."""
    mnli = dataclasses.replace(task("mnli"), metric=metric)
    with pytest.raises(ValueError, match=rf"no mnli/validation_{missing}\.parquet"):
        load(mnli, mnli_files(tmp_path, ["train", f"validation_{there}"]), tiny_roberta)


def test_a_metric_of_no_set_is_refused(tmp_path, tiny_roberta):
    with pytest.raises(ValueError, match=r"task\.metric='accuracy_test' must be one of task\.metrics=\['accuracy'\]"):
        load(dataclasses.replace(task("mnli"), metric="accuracy_test"), mnli_files(tmp_path, ["train"]), tiny_roberta)


def test_mnli_with_both_sets_says_nothing(tmp_path, tiny_roberta, caplog):
    mnli = task("mnli")
    origins = load(mnli, mnli_files(tmp_path, ["train", *ALL_SPLITS[2:]]), tiny_roberta)
    assert {name: origin["rows"] for name, origin in origins.items()} == dict.fromkeys(("train", *ALL_SPLITS[2:]), 4)
    assert caplog.messages == []
    assert list(mnli.evaluation) == ["validation_matched", "validation_mismatched"]


def test_limits_keep_some_rows_of_a_fixed_shuffle(tiny_data, tiny_roberta):
    source = LocalData(root=str(tiny_data), splits={})
    every, some, again = task("stsb"), task("stsb"), task("stsb")
    load(every, source, tiny_roberta)
    origins = load(some, source, tiny_roberta, max_train_rows=10, max_eval_rows=7)
    load(again, source, tiny_roberta, max_train_rows=10)
    assert [origins[name]["rows"] for name in ("train", "validation")] == [10, 7]
    assert [len(some.train.labels), len(some.evaluation["validation"].labels)] == [10, 7]
    assert some.train.labels.dtype == np.float32
    assert (some.train.ids == again.train.ids).all()
    assert len(every.train.labels) == 72
    assert (some.train.labels != every.train.labels[:10]).any()  # not the head of the file, which may be sorted
    assert len(again.evaluation["validation"].labels) == 40


# ---- losses


class Stub(torch.nn.Module):
    """A model whose logits are its only parameter."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    def forward(self, input_ids, attention_mask):
        return types.SimpleNamespace(logits=self.logits)


def batch(labels: torch.Tensor, weight: float) -> dict:
    ids = torch.zeros(len(labels), 1, dtype=torch.long)
    weights = torch.full((len(labels),), weight)
    return {"input_ids": ids, "attention_mask": ids, "labels": labels, "weight": weights}


@pytest.mark.parametrize("name", ["mrpc", "mnli", "stsb"])
def test_losses_are_torchs_means_of_each_replica(name):
    made, R, B = task(name), 3, 5
    torch.manual_seed(0)
    logits = torch.randn(R * B, made.num_labels)
    regression = made.num_labels == 1
    labels = torch.rand(R * B) * 5 if regression else torch.randint(made.num_labels, (R * B,))
    found = made.loss(Stub(logits), batch(labels, 1 / B), R)
    for k in range(R):
        rows = slice(k * B, (k + 1) * B)
        mean = F.mse_loss(logits[rows, 0], labels[rows]) if regression else F.cross_entropy(logits[rows], labels[rows])
        assert found[k].item() == pytest.approx(mean.item(), rel=1e-6)


def test_half_precision_outputs_are_scored_in_float32():
    made, logits = task("mrpc"), torch.randn(4, 2, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = made.loss(Stub(logits), batch(torch.tensor([0, 1, 1, 0]), 0.25), 1)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(F.cross_entropy(logits.float(), torch.tensor([0, 1, 1, 0])).item(), rel=1e-6)


@pytest.mark.parametrize("name", ["mrpc", "stsb"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_replica_that_is_not_finite_changes_no_other(name, bad, which):
    made, R, B = task(name), 3, 4
    torch.manual_seed(1)
    logits = torch.randn(R * B, made.num_labels)
    labels = torch.rand(R * B) if made.num_labels == 1 else torch.randint(2, (R * B,))
    broken = logits.clone()
    broken[which * B + 1] = bad
    clean, hurt = Stub(logits), Stub(broken)
    expected, found = (made.loss(model, batch(labels, 1 / B), R) for model in (clean, hurt))
    for model, loss in ((clean, expected), (hurt, found)):
        loss.sum().backward()
        assert model.logits.grad.shape == (R * B, made.num_labels)
    others = [k for k in range(R) if k != which]
    assert not torch.isfinite(found[which])
    assert torch.equal(found[others], expected[others])
    rows = torch.arange(R * B).view(R, B)[others].flatten()
    assert torch.equal(hurt.logits.grad[rows], clean.logits.grad[rows])
