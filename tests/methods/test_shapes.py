"""Every method on layers of any shape: its update, its weight, its factors and its PEFT tensors say the same."""

import functools
from types import SimpleNamespace

import pytest
import torch
from conftest import composed
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from method_helpers import COMMON, PACKING, PENALTY, disturb, layer_of, trained_numbers
from omegaconf import OmegaConf
from torch import nn

from melora_bench.adapters.files import adapter_tensors
from melora_bench.adapters.peft_format import PREFIX, to_peft
from melora_bench.methods.adalora import AdaLoRA
from melora_bench.methods.delta_lora import DeltaLoRA
from melora_bench.methods.dylora import DyLoRA
from melora_bench.methods.layers import AdapterLayer
from melora_bench.methods.lora import LoRA
from melora_bench.methods.melora import MELoRA
from melora_bench.methods.mplora import MPLoRA

DELTA = {"delta_ratio": 0.5, "start_step": 1, "warmup_ratio": 0.06}
ADALORA = {
    "version": 1,
    "target_modules": ["query"],
    "alpha": 16,
    "lora_dropout": 0.0,
    "orth_weight": 0.1,
    "beta1": 0.85,
    "beta2": 0.85,
    "init_warmup": 0.1,
    "final_warmup": 0.3,
    "delta_t": 10,
}


class Tiny(nn.Module):
    """Two linear layers, each of its own shape, and a head."""

    def __init__(self, query: tuple[int, int], value: tuple[int, int]) -> None:
        super().__init__()
        self.query, self.value, self.classifier = nn.Linear(*query), nn.Linear(*value), nn.Linear(value[1], 2)
        self.config = SimpleNamespace(initializer_range=0.02)


@functools.cache
def config(name: str) -> dict:
    return OmegaConf.to_container(composed(["backbone=roberta_base", f"method={name}"]).method, resolve=True)


def attached(name: str, replicas: int = 1, r: int = 1, n: int = 1, sizes: tuple[int, ...] = (3, 4, 5, 6)):
    """A Tiny model under a method; r and n are set where the method has them, and every size is a multiple of n."""
    own = {"r": r, "n": n, "init_r": r + 1, "target_r": r}
    values = config(name)
    method = instantiate(values | {key: value for key, value in own.items() if key in values}, _convert_="all")
    a, b, c, d = (n * size if "n" in values else size for size in sizes)
    model = Tiny((a, b), (c, d))
    method.attach(model, "classifier", list(range(replicas)), total_steps=100)
    return model.eval(), method


LAYERED = [name for name in PACKING if attached(name)[1].layers]


@pytest.mark.parametrize("name", LAYERED)
@given(
    r=st.integers(1, 5),
    n=st.integers(1, 4),
    sizes=st.tuples(*[st.integers(1, 7)] * 4),
    rows=st.integers(1, 6),
    replicas=st.integers(1, 3),
    silent=st.integers(0, 5),
)
@settings(max_examples=30, deadline=None)
def test_update_weight_factors_and_peft_tensors_agree(name, r, n, sizes, rows, replicas, silent):
    """For d_in != d_out, any r, n, batch and replicas; the replica `silent`, if there is one, has no update at all."""
    model, method = attached(name, replicas, r, n, sizes)
    disturb(model)
    if silent < replicas:
        for value in adapter_tensors(model, silent).values():
            value.zero_()
    model.double()
    assert list(method.layers) == ["query", "value"]
    source = torch.Generator().manual_seed(2)
    for layer in method.layers.values():
        x = torch.randn(replicas, rows, layer.base.in_features, dtype=torch.float64, generator=source)
        assert layer.update(x).shape == (replicas, rows, layer.base.out_features)
        if layer.form == "function":
            continue
        delta = layer.delta_weight()
        assert delta.shape == (replicas, layer.base.out_features, layer.base.in_features)
        assert delta.flatten(1).ne(0).any(1).tolist() == [k != silent for k in range(replicas)]
        torch.testing.assert_close(layer.update(x), x @ delta.mT, rtol=1e-12, atol=1e-11)
        if layer.form == "matrix":
            continue
        B, A = layer.lora_factors()
        torch.testing.assert_close(delta, B @ A, rtol=1e-12, atol=1e-11)
    for k in range(replicas if layer.form == "factors" else 0):
        assert_peft_tensors_multiply_to_the_update(method.layers, k)


def assert_peft_tensors_multiply_to_the_update(layers: dict[str, AdapterLayer], replica: int) -> None:
    """lora_B lora_A is the update at PEFT's scale lora_alpha / r = 1; a module without an update is not there."""
    entries, tensors = to_peft(layers, replica)
    for name, layer in layers.items():
        delta = layer.delta_weight()[replica].float()
        A, B = (tensors.pop(f"{PREFIX}{name}.lora_{part}.weight", None) for part in "AB")
        assert (name in entries["target_modules"]) == (A is not None) == (B is not None) == bool(delta.any())
        if A is not None:
            torch.testing.assert_close(B @ A, delta, rtol=1e-5, atol=1e-4)
            rank = entries["rank_pattern"].get(name, entries["r"])
            assert rank == entries["alpha_pattern"].get(name, entries["lora_alpha"]) == len(A) == B.shape[1]
    assert tensors == {}


def test_directions_that_are_zero_are_left_out():
    """Triplets pruned to 3, 2 of 4 in replica 0 and to 4, 0 in replica 1: each module is stored with the rank it
    has."""
    model, method = attached("adalora", replicas=2, r=3, sizes=(6, 7, 8, 9))
    disturb(model)
    for name, kept in (("query", (3, 4)), ("value", (2, 0))):
        for k, rank in enumerate(kept):
            method.layers[name].E.data[k, rank:] = 0
    for k, ranks in enumerate(({"query": 3, "value": 2}, {"query": 4})):
        assert_peft_tensors_multiply_to_the_update(method.layers, k)
        _, tensors = to_peft(method.layers, k)
        assert {name: len(tensors[f"{PREFIX}{name}.lora_A.weight"]) for name in ranks} == ranks
        assert len(tensors) == 2 * len(ranks)


@pytest.mark.parametrize(
    ("method", "shape", "layers", "expected"),
    [
        (DyLoRA(r=8, frozen=True, **COMMON), 768, 24, 294_912),
        (DyLoRA(r=8, frozen=False, **COMMON), 768, 24, 294_912),
        (DeltaLoRA(r=8, **DELTA, **COMMON), 768, 24, 294_912),
        (AdaLoRA(init_r=12, target_r=8, **ADALORA), 768, 24, 442_656),
        (MELoRA(r=1, n=4, **COMMON), 768, 24, 36_864),
        (MPLoRA(r=64, n=4, **PENALTY, **COMMON), 4096, 64, 33_554_432),
        (DyLoRA(r=64, frozen=True, **COMMON), 4096, 64, 33_554_432),
        (DeltaLoRA(r=64, **DELTA, **COMMON), 4096, 64, 33_554_432),
    ],
)
def test_parameter_counts(method, shape, layers, expected):
    """RoBERTa-base: 24 matrices of 768 x 768; LLaMA-2-7B: 64 of 4096 x 4096. AdaLoRA's is that of its first rank."""
    assert layers * trained_numbers(layer_of(method, shape, shape, replicas=1, device="meta")) == expected


def test_melora_trains_64_times_fewer_numbers_than_lora_on_llama():
    """r = 1 against r = 64; the paper's text says 36 times, which its own counts do not give."""
    lora = trained_numbers(layer_of(LoRA(r=64, **COMMON), 4096, 4096, replicas=1, device="meta"))
    melora = trained_numbers(layer_of(MELoRA(r=1, n=64, **COMMON), 4096, 4096, replicas=1, device="meta"))
    assert lora == 64 * melora
