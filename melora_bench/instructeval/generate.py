"""What a model writes after each of many prompts: greedy, or sampled so that neither batch nor order changes the draw."""

import copy
import hashlib
import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from melora_bench.tasks.splits import pad_id


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
    end-of-text tokens. temperature 0 is greedy;
    above, a prompt's draws depend on `seed` and its text alone. `on_batch` gets the number of prompts done after every
    batch, longest prompts first. Raises ValueError for a model that cannot generate, and before any work for prompts that
    leave no room in its positions.
    """
    check_model(model)
    tokens = [tokenizer(prompt, verbose=False).input_ids for prompt in prompts]
    check_room(model, max((len(ids) for ids in tokens), default=0), max_new_tokens)
    ends = end_tokens(model, tokenizer)
    padding = pad_id(tokenizer, list(itertools.chain(*tokens)))
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, eos_token_id=ends or None, pad_token_id=padding
    )
    outputs = [""] * len(prompts)
    # The longest first: memory fails early.
    order = sorted(range(len(prompts)), key=lambda number: -len(tokens[number]))
    own, training = model.generation_config, model.training
    model.generation_config = GenerationConfig()  # what a call leaves open is filled from here
    model.eval()
    try:
        shared, cache = _encode_shared(model, tokens)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            ids, mask = _pad_left([tokens[number] for number in batch], shared, padding, model.device)
            sampling = [SeededSampling(temperature, [_seed(seed, prompts[number]) for number in batch])]
            written = model.generate(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=_repeated(cache, len(batch)),
                generation_config=settings,
                logits_processor=sampling if temperature > 0 else [],
            )
            for number, row in zip(batch, written[:, ids.shape[1] :].tolist(), strict=True):
                length = next((place for place, id in enumerate(row) if id in ends), len(row))
                outputs[number] = tokenizer.decode(
                    row[:length], skip_special_tokens=True, clean_up_tokenization_spaces=False
                )
            if on_batch:
                on_batch(len(batch))
    finally:
        model.generation_config = own
        model.train(training)
    return outputs


def check_model(model: nn.Module) -> None:
    if not hasattr(model, "generate"):
        raise ValueError(f"{type(model).__name__} cannot generate text: load a causal language model")


def check_room(model: nn.Module, longest: int, max_new_tokens: int) -> None:
    """Raises ValueError if the longest prompt and its new tokens are more than the model has positions for."""
    positions = getattr(model.config, "max_position_embeddings", None)  # some architectures have no limit
    if positions is not None and longest + max_new_tokens > positions:
        raise ValueError(
            f"the longest prompt has {longest} tokens and {max_new_tokens} are to be written, but {type(model).__name__} "
            f"has {positions} positions: use a model with more, or a smaller context if there are shots to drop"
        )


def end_tokens(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The checkpoint's end-of-text tokens and the tokenizer's."""
    own = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
    return sorted(ends)


def _encode_shared(model: nn.Module, rows: list[list[int]]) -> tuple[int, DynamicCache | None]:
    """How many first tokens all rows share (a subject's header and shots), each keeping one of its own, and the model's
    keys and values of them; 0 and None where nothing is to gain, or the model keeps something else."""
    if len(rows) < 2:
        return 0, None
    first, last = min(rows), max(rows)  # in the order of lists, so that what these two share all share
    least = min(map(len, rows)) - 1
    shared = next((place for place in range(least) if first[place] != last[place]), least)
    if shared < 1:
        return 0, None
    ids = torch.tensor([first[:shared]], device=model.device)
    cache = getattr(model.base_model(ids, use_cache=True), "past_key_values", None)
    # A window of the last tokens would count the padding in the middle.
    windowed = getattr(model.config, "attention_layers", None)
    plain = type(cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in cache.layers) and not windowed
    return (shared, cache) if plain else (0, None)


def _repeated(cache: DynamicCache | None, rows: int) -> DynamicCache | None:
    """A copy for a batch: generating adds to it."""
    if cache is None:
        return None
    cache = copy.deepcopy(cache)
    cache.batch_repeat_interleave(rows)
    return cache


def _pad_left(rows: list[list[int]], shared: int, padding: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """ids and attention mask, both (rows, longest), padded after the first `shared` tokens of each."""
    longest = max(map(len, rows))
    ids = [[*row[:shared], *[padding] * (longest - len(row)), *row[shared:]] for row in rows]
    mask = [[1] * shared + [0] * (longest - len(row)) + [1] * (len(row) - shared) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _seed(seed: int, prompt: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}\n{prompt}".encode()).digest()[:8], "big", signed=True)
