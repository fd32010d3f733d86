"""Multi-LoRA and Share-LoRA: what several paths amount to, and the tie that a literal Share-LoRA never breaks."""

import pytest
import torch
from method_helpers import COMMON, build, inputs, layer_of

from melora_bench.adapters.files import trainable
from melora_bench.methods.lora import LoRA
from melora_bench.methods.multi_lora import MultiLoRA
from melora_bench.methods.share_lora import ShareLoRA


def test_multi_lora_is_one_lora_of_rank_n_r_and_alpha_n_times_larger():
    multi = layer_of(MultiLoRA(r=2, n=3, **COMMON), 12, 8)
    one = layer_of(LoRA(r=6, **COMMON | {"alpha": 48}), 12, 8)
    one.A.data, one.B.data = multi.A.data, multi.B.data
    x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1))
    assert torch.equal(multi.update(x), one.update(x))
    paths = zip(multi.A.split(2, dim=1), multi.B.split(2, dim=2), strict=True)
    summed = sum(16 / 2 * (x @ A.mT) @ B.mT for A, B in paths)
    assert torch.allclose(multi.update(x), summed, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "expected"),
    [(MultiLoRA(r=8, n=n, **COMMON), count) for n, count in ((2, 589_824), (3, 884_736), (4, 1_179_648))]
    + [
        (ShareLoRA(r=8, n=n, orth=0, path_dropout="shared", **COMMON), count)
        for n, count in ((2, 442_368), (3, 589_824), (4, 737_280))
    ],
)
def test_parameter_counts_of_mplora_table_1(method, expected):
    layer = layer_of(method, 768, 768, replicas=1, device="meta")
    assert 24 * (layer.A.numel() + layer.B.numel()) == expected


@pytest.mark.parametrize("orth", [0, 0.1])
@pytest.mark.parametrize(("path_dropout", "tied"), [("shared", True), ("independent", False)])
def test_share_lora_paths_stay_equal_unless_their_dropout_differs(tiny_roberta, orth, path_dropout, tied):
    """After six steps in training mode the B_i are still one matrix, with or without the penalty, if dropout is
    shared."""
    overrides = ["method.n=3", f"method.orth={orth}", f"method.path_dropout={path_dropout}", "method.lora_dropout=0.2"]
    model, method = build(tiny_roberta, "share_lora", [0, 1], *overrides)
    model.train()
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=0.01)
    for _ in range(6):
        (model(**inputs()).logits.square().sum() + torch.as_tensor(method.penalty()).sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    for layer in method.layers.values():
        assert layer.B.abs().max() > 1e-3
        assert torch.allclose(layer.B[:, 0], layer.B[:, 1], atol=1e-7) == tied
        assert torch.allclose(layer.B[:, 0], layer.B[:, 2], atol=1e-7) == tied
