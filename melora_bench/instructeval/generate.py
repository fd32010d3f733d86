"""What a model writes after each of many prompts: greedy,
or sampled so that neither batch nor order changes the draw."""

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, PreTrainedTokenizerBase

from melora_bench.instructeval.language_model import LanguageModel, language_model
from melora_bench.instructeval.shared_prefix import encode_shared, pad_left, repeated
from melora_bench.tasks.splits import pad_id, unended


class SeededSampling(LogitsProcessor):
    """Turns greedy decoding into sampling: argmax(logits / T + Gumbel noise) is a draw from softmax(logits / T).

    Every row has a generator of its own on the CPU, so that its draws depend on its seed alone.
    """

    def __init__(self, temperature: float, seeds: list[int]) -> None:
        self.temperature = temperature
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores (rows, vocabulary) -> the same shape, whose argmax is the drawn token."""
        size = scores.shape[1]
        noise = torch.stack([torch.empty(size).exponential_(generator=one) for one in self.generators])
        return scores / self.temperature - noise.to(scores.device).log()


@torch.inference_mode()
def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    *,
    max_new_tokens: int,
    batch_size: int,
    temperature: float = 0.0,
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
) -> list[str]:
    """The text after each prompt, in the order given, up to the end-of-text token or `max_new_tokens`.

    What all prompts begin with is encoded once. The checkpoint's own generation settings are set aside, but for its
    end-of-text tokens. temperature 0 is greedy; above, a prompt's draws depend on `seed` and its text alone. `on_batch`
    gets the number of prompts done after every batch, longest prompts first. Raises ValueError for a model that cannot
    generate, and before any work for prompts that leave no room in its positions.
    """
    writer = language_model(model)
    tokens = unended(tokenizer, prompts)
    check_room(writer, max((len(ids) for ids in tokens), default=0), max_new_tokens)
    ends = end_tokens(writer, tokenizer)
    padding = pad_id(tokenizer, list(itertools.chain(*tokens)))
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, eos_token_id=ends or None, pad_token_id=padding
    )
    outputs = [""] * len(prompts)
    # The longest first: memory fails early.
    order = sorted(range(len(prompts)), key=lambda number: -len(tokens[number]))
    with _settings_aside(writer):
        shared, cache = encode_shared(writer, tokens)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            ids, mask = pad_left([tokens[number] for number in batch], shared, padding, writer.device)
            sampling = [SeededSampling(temperature, [_seed(seed, prompts[number]) for number in batch])]
            written = writer.generate(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=repeated(cache, len(batch)),
                generation_config=settings,
                logits_processor=sampling if temperature > 0 else [],
            )
            for number, row in zip(batch, written[:, ids.shape[1] :].tolist(), strict=True):
                outputs[number] = _text(tokenizer, row, ends)
            if on_batch:
                on_batch(len(batch))
    return outputs


@contextlib.contextmanager
def _settings_aside(model: LanguageModel) -> Iterator[None]:
    """The model without dropout and without its checkpoint's generation settings, from which a call's gaps are
    filled."""
    settings, training = model.generation_config, model.training
    model.generation_config = GenerationConfig()
    model.train(False)
    try:
        yield
    finally:
        model.generation_config = settings
        model.train(training)


def _text(tokenizer: PreTrainedTokenizerBase, row: list[int], ends: list[int]) -> str:
    """The new tokens of one prompt up to the first of `ends`, as text."""
    length = next((place for place, token in enumerate(row) if token in ends), len(row))
    return str(tokenizer.decode(row[:length], skip_special_tokens=True, clean_up_tokenization_spaces=False))


def check_room(model: LanguageModel, longest: int, max_new_tokens: int) -> None:
    """Raises ValueError if the longest prompt and its new tokens are more than the model has positions for."""
    positions = getattr(model.config, "max_position_embeddings", None)  # some architectures have no limit
    if positions is not None and longest + max_new_tokens > positions:
        raise ValueError(
            f"the longest prompt has {longest} tokens and {max_new_tokens} are to be written, but "
            f"{type(model).__name__} has {positions} positions: use a model with more, or a smaller context if there "
            "are shots to drop"
        )


def end_tokens(model: LanguageModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The checkpoint's end-of-text tokens and the tokenizer's."""
    of_model = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(of_model if isinstance(of_model, list) else [of_model])} - {None}
    return sorted(ends)


def _seed(seed: int, prompt: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}\n{prompt}".encode()).digest()[:8], "big", signed=True)
