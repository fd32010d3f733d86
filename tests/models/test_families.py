"""Every family of backbones, from tiny random checkpoints: a row's outputs are its own, seeds side by side are each
alone, runs train, score and export."""

import copy
import functools
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import composed, run_point
from helpers import curves

from melora_bench.adapters.export import TOLERANCE, export
from melora_bench.external.fields import build
from melora_bench.files import CONFIGS
from melora_bench.methods.lora import LoRA
from melora_bench.models.backbones import CausalLM, Encoder
from melora_bench.models.base import Backbone
from melora_bench.models.fused import Fused, stock
from melora_bench.models.streams import KINDS, takes_streams
from melora_bench.records import records
from melora_bench.tasks.instruct import InstructTask
from melora_bench.tasks.splits import Split

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 140,
    "initializer_range": 0.1,
}
DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
RELATIVE = {"relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0}
DEBERTA = {"position_biased_input": False, "norm_rel_ebd": "layer_norm", "pooler_hidden_size": 32, **RELATIVE}
LLAMA = {"num_key_value_heads": 2}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 140}
# By name: the model type and its own settings.
ENCODERS = {
    "bert": ("bert", {}),
    "bert_without_pooler": ("bert", {}),
    "roberta": ("roberta", {}),
    "xlm_roberta": ("xlm-roberta", {}),
    "camembert": ("camembert", {}),
    "distilbert": ("distilbert", DISTIL),
    "albert": ("albert", {"embedding_size": 16}),
    "electra": ("electra", {"embedding_size": 16}),
    "deberta_v2": ("deberta-v2", {**DEBERTA, "conv_kernel_size": 3}),
    "deberta_v3": ("deberta-v2", {**DEBERTA, "share_att_key": True}),
    "modernbert": ("modernbert", {"local_attention": 8, "global_attn_every_n_layers": 2}),
}
DECODERS = {
    "llama_mha": ("llama", {"num_key_value_heads": 4}),
    "llama_gqa": ("llama", LLAMA),
    "llama_mqa": ("llama", {"num_key_value_heads": 1}),
    "llama_tied": ("llama", {**LLAMA, "tie_word_embeddings": True}),
    "llama_head_dim": ("llama", {**LLAMA, "head_dim": 16}),
    "mistral": ("mistral", {**LLAMA, "sliding_window": 8}),
    "qwen2": ("qwen2", LLAMA),
    "qwen3": ("qwen3", {**LLAMA, "head_dim": 16}),
    "gemma2": ("gemma2", {**LLAMA, "head_dim": 8, "sliding_window": 8}),
    "gemma3": ("gemma3_text", {**LLAMA, "head_dim": 8, "sliding_window": 8}),
    "phi3": ("phi3", LLAMA),
    "opt": ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "gpt_neox": ("gpt_neox", {}),
    "bloom": ("bloom", {"n_layer": 2, "n_head": 4}),
    "gpt_neo": ("gpt_neo", {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}),
    "gpt2": ("gpt2", GPT),
}
HEADS = {
    "bert_without_pooler": ["bert.pooler", "classifier"],
    "distilbert": ["pre_classifier", "classifier"],
    "deberta_v2": ["pooler", "classifier"],
    "deberta_v3": ["pooler", "classifier"],
}
SHARING = {"deberta_v2", "deberta_v3"}  # whose projections also read what all rows share
FUSED = {"modernbert", "phi3", "gpt_neox", "bloom", "gpt2"}
QUICK = {"bert_without_pooler", "deberta_v3", "modernbert", "llama_gqa", "gpt_neox", "gpt2", "gpt_neo"}
LENGTHS = [3, 24, 1, 9]


def few(names, quick=QUICK) -> list:
    """All families, of which those that are not quick are slow."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, tiny_roberta, tiny_llama):
    """checkpoint(name) -> the folder of that family's tiny model."""

    @functools.cache
    def made(name: str) -> Path:
        decoder = name in DECODERS
        folder, tokenizers = tmp_path_factory.mktemp(name), tiny_llama if decoder else tiny_roberta
        tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizers)
        kind, own = (ENCODERS | DECODERS)[name]
        ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
        if kind in ("gpt2", "bloom", "gpt_neo"):
            ids["pad_token_id"] = None
        config = transformers.AutoConfig.for_model(kind, vocab_size=len(tokenizer), **{**SIZES, **ids, **own})
        auto = transformers.AutoModelForCausalLM if decoder else transformers.AutoModel
        if name in ("bert_without_pooler", "modernbert"):
            auto = transformers.AutoModelForMaskedLM
        torch.manual_seed(0)
        auto.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return made


def backbone(name: str, folder: Path, **own) -> Backbone:
    common = {"name": name, "repo": None, "revision": None, "path": str(folder), "target_modules": [], "seen": []}
    common |= {"dropout": None, **own}
    if name in ENCODERS:
        return Encoder(**common, head=HEADS.get(name, "classifier"))
    return CausalLM(**common, dtype="float32", quantization=None, gradient_checkpointing=False)


def split(vocabulary: int, pad_id: int) -> Split:
    source, offsets = np.random.default_rng(0), np.concatenate([[0], np.cumsum(LENGTHS)])
    ids = source.integers(4, vocabulary, size=offsets[-1]).astype(np.int32)
    return Split(ids=ids, types=None, offsets=offsets, labels=np.zeros(len(LENGTHS), np.int64), pad_id=pad_id)


def batches(rows: Split, numbers: list[list[int]], first: int | None) -> dict:
    batch = rows.batch(np.array(numbers), first)
    batch.pop("labels")
    return batch


def adapted(name: str, folder: Path, seeds: list[int]) -> torch.nn.Module:
    """The classifier under LoRA in all linear layers, no factor zero; what a seed has depends on it alone."""
    plain = backbone(name, folder).for_task(3)
    model = plain.model(3).eval()
    method = LoRA(version=1, target_modules="all-linear", r=2, alpha=4, lora_dropout=0.0, init_a="kaiming_uniform")
    method.attach(model, plain.head, seeds, 10)
    for number, layer in enumerate(method.layers.values()):
        for k, seed in enumerate(seeds):
            layer.B.data[k].normal_(0, 0.1, generator=torch.Generator().manual_seed(1000 * seed + number))
    return model


@pytest.mark.parametrize("pooling", [None, "first", "mean", "last"])
@pytest.mark.parametrize("name", few([*ENCODERS, *DECODERS], QUICK - {"gpt_neo"}))
def test_a_rows_logits_are_its_own(name, pooling, checkpoint):
    """Of each pooling, in every layout that the model takes, whatever the row is padded with."""
    plain = backbone(name, checkpoint(name), pooling=pooling).for_task(3)
    model = plain.model(3).eval()
    rows = split(24, pad_id=7 if name in DECODERS else 1)
    with torch.no_grad():
        alone = [model(**batches(rows, [[row]], None)).logits[0] for row in range(4)]
        beside = model(**batches(rows, [[0, 1, 2, 3]], None)).logits
        torch.testing.assert_close(beside, torch.stack(alone), rtol=1e-4, atol=1e-5)
        assert takes_streams(model) == (model.config.model_type in KINDS)
        if takes_streams(model):
            streams = model(**batches(rows, [[0, 1, 2, 3]], plain.first_position(model))).logits
            torch.testing.assert_close(streams, beside, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", few([*ENCODERS, *DECODERS], {"deberta_v3", "opt", "gpt2"}))
def test_dropout_is_set_whatever_its_keys_are(name, checkpoint):
    """At 0 training computes what evaluation does, at 0.3 it does not."""
    batch = batches(split(24, 1), [[1]], None)
    for rate in (0.0, 0.3):
        model = backbone(name, checkpoint(name), dropout=rate).for_task(3).model(3)
        assert torch.equal(model.train()(**batch).logits, model.eval()(**batch).logits) == (rate == 0)


def test_a_pooling_layer_without_weights_is_named(checkpoint):
    """As of a BERT saved from a masked language model; what the line says to give does."""
    common = {"name": "tiny", "repo": None, "revision": None, "target_modules": [], "seen": [], "dropout": None}
    common["path"] = str(checkpoint("bert_without_pooler"))
    wanted = r"holds no pooling layer: give backbone\.head=\[bert\.pooler,classifier\] to train one, or .*pooling=mean$"
    with pytest.raises(ValueError, match=wanted):
        Encoder(**common, head="classifier").model(2)
    assert Encoder(**common, head=["bert.pooler", "classifier"]).model(2).bert.pooler
    assert Encoder(**common, head="classifier", pooling="mean").model(2).bert.pooler is None


@pytest.mark.parametrize("name", ["llama_gqa", "opt"])
def test_poolings_of_a_decoder_are_what_they_say(name, checkpoint):
    """By hand, of one row without padding."""
    for pooling in ("first", "mean", "last"):
        model = backbone(name, checkpoint(name), pooling=pooling).for_task(3).model(3).eval()
        batch = batches(split(24, 7), [[1]], None)
        hidden = model.base_model(**batch).last_hidden_state[0]
        wanted = {"first": hidden[0], "mean": hidden.mean(0), "last": hidden[-1]}[pooling]
        torch.testing.assert_close(model(**batch).logits[0], model.score(wanted))


@pytest.mark.parametrize("name", few(DECODERS, {"gpt_neo", "opt", "llama_gqa"}))
def test_a_rows_loss_is_its_own(name, checkpoint):
    """Of a language model: learned and rotary positions, windows and ALiBi, beside a longer row and alone."""
    model = backbone(name, checkpoint(name)).for_task(0).model(0).eval()
    rows = split(24, pad_id=7)
    with torch.no_grad():
        alone = torch.cat([InstructTask.outputs(None, model, rows.collate(np.array([row]))) for row in range(4)])
        beside = InstructTask.outputs(None, model, rows.collate(np.arange(4)))
    torch.testing.assert_close(beside, alone, rtol=1e-5, atol=1e-4)
    assert alone[:, 1].tolist() == [length - 1 for length in LENGTHS]


@pytest.mark.parametrize("name", few([*ENCODERS, *DECODERS], QUICK - {"gpt_neo", "bert_without_pooler"}))
def test_seeds_side_by_side_are_each_alone(name, checkpoint):
    """LoRA in all linear layers: logits and gradients; refused by name where layers read what all rows share."""
    folder, rows = checkpoint(name), split(24, 1)
    together = adapted(name, folder, [0, 1])
    batch = batches(rows, [[0, 1, 2, 3], [3, 1, 0, 2]], None)
    if name in SHARING:
        with pytest.raises(
            ValueError, match=r"_proj also reads a tensor of shape \(1, 16, 32\) .* backbone\.packs=false$"
        ):
            together(**batch)
        return
    if name in DECODERS:
        assert together.score.bias is None  # as in the stock class, so that an export can hold the head
    logits = together(**batch).logits
    logits.square().sum().backward()
    for k, order in enumerate([[0, 1, 2, 3], [3, 1, 0, 2]]):
        one = adapted(name, folder, [k])
        theirs = one(**batches(rows, [order], None)).logits
        torch.testing.assert_close(logits[4 * k : 4 * k + 4], theirs, rtol=1e-4, atol=1e-5)
        theirs.square().sum().backward()
        ours = dict(together.named_parameters())
        for key, value in one.named_parameters():
            if value.requires_grad:
                torch.testing.assert_close(ours[key].grad[k], value.grad[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", few(sorted(FUSED), {"gpt2", "gpt_neox"}))
def test_a_fused_layer_is_its_parts(name, checkpoint):
    """Separated, the model computes what its class does; put together again it has the class's own weights. An adapter
    of the value changes the value alone."""
    plain = backbone(name, checkpoint(name)).for_task(3)
    torch.manual_seed(0)
    theirs = plain.stock(3).eval()
    torch.manual_seed(0)
    ours = plain.model(3).eval()
    batch = batches(split(24, 7), [[1]], None)
    torch.testing.assert_close(ours(**batch).logits, theirs(**batch).logits, rtol=1e-5, atol=1e-6)
    whole = next(path for path, module in ours.named_modules() if isinstance(module, Fused))
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    before = theirs.get_submodule(whole)(x)
    with torch.no_grad():
        ours.get_submodule(f"{whole}.value").weight.add_(0.1)
    change = (ours.get_submodule(whole)(x) - before).abs().sum((0, 1)).detach()
    changed = ours.get_submodule(whole).rows["value"]
    assert change[changed].min() > 1e-3 and change.sum() == pytest.approx(change[changed].sum().item(), rel=1e-4)
    restored = stock(copy.deepcopy(ours)).state_dict()
    assert restored.keys() == theirs.state_dict().keys()
    differing = {key for key, value in theirs.state_dict().items() if not torch.equal(restored[key], value)}
    assert differing == {f"{whole}.weight"}


def overrides(name: str, folder: Path, data: Path, root: Path, *more: str) -> list[str]:
    head = HEADS.get(name, "classifier")
    kind = [f"backbone.head=[{','.join(head)}]" if isinstance(head, list) else f"backbone.head={head}"]
    return [
        f"backbone={'roberta_base' if name in ENCODERS else 'smollm2'}",
        *(kind if name in ENCODERS else []),
        f"backbone.path={folder}",
        "backbone.name=tiny",
        "backbone.target_modules=all-linear",
        "backbone.dropout=0",
        "method.lora_dropout=0",
        "data=local",
        f"data.root={data}",
        "max_eval_rows=12",
        "max_steps=3",
        "batch_size=6",
        "lr=0.01",
        f"results_dir={root}/results",
        f"output_dir={root}/outputs",
        *more,
    ]


@pytest.mark.parametrize("name", few([*ENCODERS, *DECODERS], {"deberta_v3", "llama_gqa"}))
def test_a_family_trains_scores_and_exports(name, checkpoint, tiny_data, tmp_path):
    """Two seeds side by side are each alone; merged and as PEFT adapters, stock libraries compute our logits."""
    common = overrides(name, checkpoint(name), tiny_data, tmp_path, "task=sst2")
    packs = [f"+backbone.packs={name not in SHARING}"]
    paths = run_point([*common, *packs, "seeds=[0,1]"])
    assert records.load(paths[0]).packed_with == ([1] if name not in SHARING else [])
    [alone] = run_point([*common, *packs, "seeds=[1]", "experiment=alone"])
    for one, other in zip(curves(paths[1]), curves(alone), strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], abs=1e-5)
        assert one["metrics"] == other["metrics"]
    for merged in (False, True):
        run = records.load(alone).run_id
        options = {"which": "best", "output_dir": f"{tmp_path}/outputs", "backbone_path": str(checkpoint(name))}
        found = export(run, f"{tmp_path}/export-{merged}", merged=merged, **options)
        assert all(gap < TOLERANCE for gap in found.values())


@pytest.mark.parametrize("name", few(DECODERS, {"gpt_neo"}))
def test_a_language_model_trains_and_exports(name, checkpoint, tiny_alpaca, tmp_path):
    common = overrides(name, checkpoint(name), tiny_alpaca, tmp_path, "task=alpaca", "max_length=64")
    [path] = run_point([*common, "seeds=[0]"])
    losses = [entry["metrics"]["loss"] for entry in curves(path)]
    assert all(0 < loss < 20 for loss in losses)
    for merged in (False, True):
        options = {"which": "best", "output_dir": f"{tmp_path}/outputs", "backbone_path": str(checkpoint(name))}
        found = export(records.load(path).run_id, f"{tmp_path}/export-{merged}", merged=merged, **options)
        assert all(gap < TOLERANCE for gap in found.values())


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIGS / "backbone").glob("*.yaml")))
def test_every_option_is_a_backbone(name):
    """Of an encoder or a decoder, and each of them classifies."""
    made = build(composed([f"backbone={name}"]).backbone, "backbone")
    assert made.name == name
    assert made.for_task(2).auto is transformers.AutoModelForSequenceClassification
    assert made.packs == (name != "deberta_v3_base")


def test_smollm2_classifies():
    """The embedded decoder as it stands in configs/ serves both kinds of task."""
    fields = {key: value for key, value in composed(["backbone=smollm2"]).backbone.items() if key != "_target_"}
    plain = CausalLM(**fields)
    assert plain.for_task(0) is plain and plain.head == "" and plain.kind == "CAUSAL_LM"
    classifier = plain.for_task(2)
    assert (classifier.head, classifier.kind, classifier.pooling) == ("score", "SEQ_CLS", "last")
