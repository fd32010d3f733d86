"""Decoding on a tiny random LLaMA, against the literal loop: one prompt, no padding, no cache."""

import copy
import math
import random

import pytest
import torch
import transformers
from instruct_fakes import byte_tokenizer, tiny_llama
from tokenizers import processors

from melora_bench.instructeval.generate import SeededSampling, end_tokens, generate

NEW = 12
SOURCE = random.Random(0)
PROMPTS = ["".join(SOURCE.choices("abcdef \n", k=SOURCE.randint(1, 40))) for _ in range(13)]


def literal(model, tokenizer, prompt: str, new: int, ends: tuple = (257,)) -> str:
    """The definition of greedy decoding."""
    ids = tokenizer(prompt).input_ids
    start = len(ids)
    for _ in range(new):
        with torch.no_grad():
            token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if token in ends:
            break
        ids.append(token)
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


def written(batch_size=4, prompts=PROMPTS, model=None, tokenizer=None, **options) -> list[str]:
    return generate(
        model or tiny_llama(),
        tokenizer or byte_tokenizer(),
        prompts,
        max_new_tokens=NEW,
        batch_size=batch_size,
        **options,
    )


@pytest.mark.parametrize("batch_size", [1, 3, 8, 100])
def test_any_batch_size_writes_what_the_literal_loop_writes_in_the_order_given(batch_size):
    expected = [literal(tiny_llama(), byte_tokenizer(), prompt, NEW) for prompt in PROMPTS]
    assert written(batch_size) == expected
    assert len(set(expected)) > 6  # outputs differ, so a mix-up would show


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_what_all_prompts_begin_with_is_read_once(batch_size):
    """As shots are: 60 tokens that 13 prompts share, beginning of text included."""
    start = "".join(random.Random(1).choices("abcdef \n", k=59))
    prompts = [start, *(start + prompt for prompt in PROMPTS)]
    expected = [literal(tiny_llama(), byte_tokenizer(), prompt, NEW) for prompt in prompts]
    read = []
    hook = tiny_llama().model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append((args or (kwargs["input_ids"],))[0].numel()), with_kwargs=True
    )
    try:
        assert written(batch_size, prompts=prompts) == expected
    finally:
        hook.remove()
    assert read[0] == 59  # `start` itself keeps its last token
    lengths = sorted((len(prompt) + 1 - 59 for prompt in prompts), reverse=True)
    batches = [lengths[place : place + batch_size] for place in range(0, len(lengths), batch_size)]
    assert {len(batch) * batch[0] for batch in batches} <= set(read[1:])
    assert max(read[1:]) == len(batches[0]) * batches[0][0]


@pytest.mark.parametrize("kind", ["mistral", "gpt_neo", "mamba", "gpt2"])
def test_models_of_other_kinds_write_the_same_in_any_batch(kind):
    """A sliding window, local attention, no attention, learned positions: the prefix is shared where that is exact."""
    small = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2}
    config = {
        "mistral": lambda: transformers.MistralConfig(
            **small,
            intermediate_size=64,
            num_attention_heads=4,
            num_key_value_heads=2,
            sliding_window=32,
            max_position_embeddings=512,
        ),
        "gpt_neo": lambda: transformers.GPTNeoConfig(
            vocab_size=300,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            window_size=32,
            max_position_embeddings=512,
            attention_types=[[["global", "local"], 1]],
        ),
        "mamba": lambda: transformers.MambaConfig(**small),
        "gpt2": lambda: transformers.GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=512),
    }[kind]()
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(3)  # so that outputs differ
    start = "".join(random.Random(1).choices("abcdef \n", k=59))
    prompts = [start + prompt for prompt in PROMPTS[:6]]
    expected = [written(1, prompts=[prompt], model=model)[0] for prompt in prompts]
    assert len(set(expected)) > 1
    assert written(1, prompts=prompts, model=model) == expected
    if kind != "mamba":  # whose state takes up the padding, whoever pads
        assert written(6, prompts=prompts, model=model) == expected


def test_the_same_prompt_twice_is_written_alike():
    assert written(8, prompts=[PROMPTS[0]] * 3) == written(1, prompts=[PROMPTS[0]]) * 3


def test_a_row_stops_at_its_own_end_and_others_go_on():
    """Tokens that this model often writes are made ends, so that rows end at different lengths."""
    model = tiny_llama()
    before = model.generation_config
    ends = list(range(0, 256, 8))
    expected = [literal(model, byte_tokenizer(), prompt, NEW, ends=(257, *ends)) for prompt in PROMPTS]
    assert len({len(text) for text in expected}) > 3
    try:
        model.generation_config = transformers.GenerationConfig(eos_token_id=ends)
        for batch_size in (1, 8):
            assert written(batch_size) == expected
    finally:
        model.generation_config = before


def test_decoding_ends_when_every_row_has_ended():
    model, steps = tiny_llama(), []
    before = model.generation_config
    hook = model.register_forward_hook(lambda *_: steps.append(1))
    try:
        model.generation_config = transformers.GenerationConfig(eos_token_id=list(range(256)))
        assert written(8, prompts=PROMPTS[:8]) == [""] * 8
        assert len(steps) == 1  # after what they share, which the layers below the output read
    finally:
        model.generation_config = before
        hook.remove()


def test_an_end_that_the_tokenizer_adds_does_not_matter():
    """A prompt is to be continued: no end token comes before the answer."""
    ending = copy.deepcopy(byte_tokenizer())
    ending.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 256), ("</s>", 257)]
    )
    assert ending("a").input_ids == [*byte_tokenizer()("a").input_ids, 257]
    assert written(tokenizer=ending) == written()


def test_the_tokenizers_padding_token_does_not_matter():
    assert byte_tokenizer().pad_token is None
    assert byte_tokenizer(pad=True).pad_token_id == 258
    assert written(tokenizer=byte_tokenizer(pad=True)) == written()
    outside = copy.deepcopy(byte_tokenizer())
    outside.add_special_tokens({"pad_token": "<outside>"})
    assert outside.pad_token_id == tiny_llama().config.vocab_size
    assert written(tokenizer=outside) == written()


@pytest.mark.parametrize(
    "own",
    [
        {"do_sample": True, "temperature": 5.0, "top_k": 3},
        {"num_beams": 3},
        {"repetition_penalty": 9.0},
        {"min_new_tokens": NEW},
        {"max_length": 3},
        {"no_repeat_ngram_size": 1},
        {"bad_words_ids": [[number] for number in range(200)]},
    ],
    ids=lambda own: next(iter(own)),
)
def test_the_checkpoints_own_generation_settings_are_set_aside_and_put_back(own):
    model = tiny_llama()
    before, expected = model.generation_config, written()
    settings = transformers.GenerationConfig(**own)
    model.generation_config = settings
    try:
        assert written() == expected
        assert model.generation_config is settings
    finally:
        model.generation_config = before


def test_the_checkpoints_end_tokens_count_beside_the_tokenizers():
    model = tiny_llama()
    before = model.generation_config
    try:
        model.generation_config = transformers.GenerationConfig(eos_token_id=[258, 7])
        assert end_tokens(model, byte_tokenizer()) == [7, 257, 258]
        model.generation_config = transformers.GenerationConfig()
        assert end_tokens(model, byte_tokenizer()) == [257]
    finally:
        model.generation_config = before


def test_dropout_is_off_while_writing_and_the_mode_is_put_back():
    model = tiny_llama()
    model.model.layers[0].mlp.down_proj = torch.nn.Sequential(
        model.model.layers[0].mlp.down_proj, torch.nn.Dropout(0.9)
    )
    try:
        expected = written()
        model.train()
        assert written() == expected
        assert model.training
    finally:
        model.model.layers[0].mlp.down_proj = model.model.layers[0].mlp.down_proj[0]
        model.eval()


def test_batches_are_reported_as_they_are_done():
    counts = []
    written(5, on_batch=counts.append)
    assert counts == [5, 5, 3]
    assert written(5, prompts=[]) == []


# ---- sampling


def test_a_draw_depends_on_the_seed_and_the_prompt_alone():
    first = written(1, temperature=0.8, seed=1)
    assert written(8, temperature=0.8, seed=1) == first
    assert written(3, prompts=PROMPTS[::-1], temperature=0.8, seed=1)[::-1] == first
    assert written(1, prompts=PROMPTS[4:6], temperature=0.8, seed=1) == first[4:6]
    assert written(1, temperature=0.8, seed=2) != first
    torch.manual_seed(5)
    assert written(1, temperature=0.8, seed=1) == first


def test_a_low_temperature_is_greedy():
    assert written(temperature=1e-6) == written()


def test_draws_have_the_probabilities_of_the_softmax_at_that_temperature():
    logits = torch.tensor([[1.0, 0.0, -1.0, 0.5]])
    temperature, draws = 0.7, 20_000
    sampling = SeededSampling(temperature, seeds=[0])
    counts = torch.zeros(4)
    for _ in range(draws):
        counts[sampling(torch.zeros(1, 0), logits).argmax()] += 1
    expected = torch.softmax(logits[0] / temperature, 0)
    assert (counts / draws - expected).abs().max() < 4 * math.sqrt(0.25 / draws)


def test_rows_draw_apart():
    sampling = SeededSampling(1.0, seeds=[3, 4, 3])
    noise = sampling(torch.zeros(3, 0), torch.zeros(3, 50))
    assert torch.equal(noise[0], noise[2])
    assert not torch.equal(noise[0], noise[1])


# ---- refused


def test_a_model_that_cannot_generate_is_refused():
    base = transformers.LlamaModel(tiny_llama().config)
    with pytest.raises(ValueError, match=r"^LlamaModel cannot generate text: load a causal language model$"):
        written(model=base)


def test_a_prompt_that_leaves_no_room_in_the_models_positions_is_refused():
    room = 512 - NEW - 1  # BOS
    assert len(written(prompts=["a" * room])) == 1
    with pytest.raises(
        ValueError, match=r"^the longest prompt has 501 tokens and 12 are to be written, but .* has 512 "
    ):
        written(prompts=["a", "a" * (room + 1)])
