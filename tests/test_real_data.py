"""The real GLUE files load: rows as published, labels in range, texts that become tokens. Skipped without them."""

import numpy as np
import pytest
from conftest import composed
from hydra.utils import instantiate
from transformers import AutoTokenizer

from melora_bench.tasks.rows import load_rows

# task: (splits that have another file name, rows of train, rows of each evaluation split; None: not there)
FILES = {
    "mrpc": ({}, 3668, [408]),
    "rte": ({}, 2490, [277]),
    "cola": ({}, 8551, [1043]),
    "stsb": ({}, 5749, [1500]),
    "sst2": ({}, 67349, [872]),
    "qnli": ({"train": "train_subset9999"}, 9999, [5463]),
    "mnli": ({"train": "train_subset9999"}, 9999, [9815, None]),
    "qqp": ({"train": "train_subset22870", "validation": "heldout_from_train9999"}, 22870, [9999]),
}


@pytest.fixture(params=FILES)
def real(request, real_data):
    """(task, source, rows of train, rows of each evaluation split)."""
    splits, *counts = FILES[request.param]
    overrides = [f"task={request.param}", "data=local", f"data.root={real_data}/glue"]
    cfg = composed([*overrides, *(f"data.splits.{key}={name}" for key, name in splits.items())])
    return *(instantiate(cfg[group], _convert_="all") for group in ("task", "data")), *counts


def test_rows_and_labels_are_the_published_ones(real):
    task, source, training, evaluation = real
    expected = dict(zip([task.train_split, *task.eval_splits], [training, *evaluation], strict=True))
    for split, count in expected.items():
        rows = load_rows(source, task.name, split, task.text, None, optional=count is None)
        assert (rows and len(rows.labels)) == count
        if rows is None:
            continue
        assert rows.origin["rows"] == count
        labels = rows.labels
        assert [labels.min(), labels.max()] == task.label_range
        if task.num_labels > 1:
            assert sorted(set(labels.tolist())) == list(range(task.num_labels))
        assert all(isinstance(text, str) for column in rows.texts for text in column)


def test_a_few_rows_become_tokens(real, tiny_roberta, caplog):
    task, source, _, evaluation = real
    limits = {"max_length": 64, "max_train_rows": 40, "max_eval_rows": 20}
    origins = task.load(source, AutoTokenizer.from_pretrained(tiny_roberta), **limits)
    assert [origins[name] and origins[name]["rows"] for name in task.eval_splits] == [n and 20 for n in evaluation]
    assert len(task.train.labels) == origins[task.train_split]["rows"] == 40
    assert (task.train.lengths > 2).all()
    assert len(caplog.messages) == evaluation.count(None)
    perfect = {
        name: split.labels[:, None] if task.num_labels == 1 else np.eye(task.num_labels)[split.labels]
        for name, split in task.evaluation.items()
    }
    assert task.score(perfect)[task.metric] == 1.0
