"""One look before training refuses what no training could mend."""

import pytest
import torch
from transformers import RobertaModel

from melora_bench.tasks.text import TextTask


@pytest.mark.parametrize(
    ("layout", "instead"),
    [("padded", "give batch_size=1 and eval_batch_size=1, or another backbone"), ("streams", "give layout=padded")],
)
@pytest.mark.parametrize("seeds", ["[0]", "[0,1]"])
def test_a_row_that_depends_on_its_company_is_refused(layout, instead, seeds, refused, monkeypatch):
    real = TextTask.outputs

    def outputs(self, model, batch):
        """Each row's logits and a hundredth of their sum over the batch."""
        logits = real(self, model, batch)
        return logits + logits.sum(0) / 100

    monkeypatch.setattr(TextTask, "outputs", outputs)
    refused(
        r"error: backbone tiny: the outputs of a row of 5 tokens change by 0\.\d+ of their size beside one of 16: "
        + instead,
        f"layout={layout}",
        f"seeds={seeds}",
    )


def test_a_row_that_the_model_does_not_read_is_refused(refused, monkeypatch):
    real = RobertaModel.forward

    def forward(self, input_ids=None, **options):
        if input_ids.shape[1] > 15:
            raise IndexError("index out of range in self\nand more")
        return real(self, input_ids, **options)

    monkeypatch.setattr(RobertaModel, "forward", forward)
    refused(
        r"backbone tiny does not read a row of 16 tokens \(index out of range in self\): lower max_length, or",
        "layout=padded",
    )


def test_memory_that_ends_is_no_refusal(refused, monkeypatch):
    """Seeds are halved for it elsewhere."""

    def forward(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(RobertaModel, "forward", forward)
    with pytest.raises(AssertionError, match="out of memory"):
        refused("lower max_length")
