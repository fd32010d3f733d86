"""What we found on the way: each finding is measured when it is written, and names the test that shows it.
It takes torch."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from melora_bench.methods.mplora import path_overlap
from melora_bench.results.tiny import attached, count, train

SHOWN = 768, 768  # RoBERTa-base's query and value
LLAMA = 4096, 4096  # LLaMA-2-7B's
LLAMA_LAYERS = 64  # q and v of 32 blocks


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One finding: a Markdown text with the names of what `measure` returns in braces, and its test."""

    text: str
    test: str  # <file below tests/methods>::<function>
    measure: Callable[[], dict[str, object]]

    @property
    def statement(self) -> str:
        """The text with its numbers, measured now."""
        return self.text.format(**self.measure())


def _mplora_is_lora() -> dict[str, object]:
    lora, mplora = _losses("lora"), _losses("mplora", "n=4", "penalty_weight=0")
    return {"steps": len(lora), "gap": _largest(lora, mplora)}


def _melora_is_lora() -> dict[str, object]:
    return {"gap": _largest(_losses("lora"), _losses("melora", "n=1"))}


def _penalty_growth() -> dict[str, object]:
    B = torch.randn(1, 24, 8, generator=torch.Generator().manual_seed(4))
    once, twice = (path_overlap(times * B, 2, "squared_frobenius").item() for times in (1, 2))
    return {"factor": twice / once}


def _share_lora_paths() -> dict[str, object]:
    readings = {
        "shared": ["path_dropout=shared"],
        "penalized": ["path_dropout=shared", "orth=0.1"],
        "independent": ["path_dropout=independent"],
    }
    return {
        name: _distinct(train("share_lora", "n=3", "lora_dropout=0.2", *reading)[0].query.B[0])
        for name, reading in readings.items()
    }


def _multi_lora_size() -> dict[str, object]:
    return {"times": count(attached("multi_lora", SHOWN, "n=4")[0]) // count(attached("lora", SHOWN)[0])}


def _delta_lora_rank() -> dict[str, object]:
    delta = train("delta_lora", "r=4", "start_step=3")[0].query.delta_weight()[0].detach().double()
    return {"rank": int(torch.linalg.matrix_rank(delta, rtol=1e-6)), "possible": len(delta)}


def _adalora_ranks() -> dict[str, object]:
    def mean_rank(hook: bool) -> float:
        ranks = train("adalora", "delta_t=2", steps=24, hook=hook)[1].report(0)["ranks"]
        return float(sum(ranks.values()) / len(ranks))

    return {"pruned": mean_rank(hook=True), "never": mean_rank(hook=False)}


def _dylora_moves() -> dict[str, object]:
    one_less, all_steps = (train("dylora", "lora_dropout=0", steps=steps)[0].query.A for steps in (11, 12))
    return {"moved": int((all_steps - one_less)[0].abs().sum(1).count_nonzero())}


def _llama_parameters() -> dict[str, object]:
    lora = LLAMA_LAYERS * count(attached("lora", LLAMA, "r=64")[0])
    melora = LLAMA_LAYERS * count(attached("melora", LLAMA, "r=1", "n=64")[0])
    return {"times": lora // melora, "lora": lora, "melora": melora}


def _scales() -> dict[str, object]:
    lora, melora = attached("lora", SHOWN, "r=8")[0], attached("melora", SHOWN, "r=1", "n=8")[0]
    return {"lora": lora.query.scaling, "melora": melora.query.scaling}


def _losses(name: str, *overrides: str) -> list[float]:
    """The losses of a short training without dropout."""
    return train(name, "lora_dropout=0", *overrides)[2]


def _largest(one: list[float], two: list[float]) -> float:
    """The largest difference at one step."""
    return max(abs(a - b) for a, b in zip(one, two, strict=True))


def _distinct(matrices: torch.Tensor) -> int:
    """How many of (n, ...) differ by more than rounding."""
    return len(torch.unique((matrices.detach().flatten(1) * 1e4).round(), dim=0))


FINDINGS = [
    Finding(
        text="**MPLoRA at lambda = 0 is LoRA.** n only partitions the penalty: trained side by side for {steps} steps, "
        "their losses differ by {gap:g}. The lambda = 0 row of the paper's table 3 is a second sample of its LoRA row.",
        test="test_facts.py::test_limits_are_lora_to_the_last_bit",
        measure=_mplora_is_lora,
    ),
    Finding(
        text="**MELoRA at n = 1 is LoRA.** Their losses differ by {gap:g}.",
        test="test_facts.py::test_limits_are_lora_to_the_last_bit",
        measure=_melora_is_lora,
    ),
    Finding(
        text="**MPLoRA's penalty is quartic in B, and B starts at 0.** Doubling B multiplies it by {factor:.4g}. "
        "Records hold `penalty` beside `train_loss`, so that anyone can see whether it mattered.",
        test="test_facts.py::test_path_overlap_is_the_double_loop",
        measure=_penalty_growth,
    ),
    Finding(
        text="**Share-LoRA, read literally, has one path.** Of 3 B_i, {shared} is left distinct after training with "
        "one dropout mask for all, {penalized} with the penalty, and {independent} where each path draws its own mask, "
        "which is our default.",
        test="test_paths.py::test_share_lora_paths_stay_equal_unless_their_dropout_differs",
        measure=_share_lora_paths,
    ),
    Finding(
        text="**Multi-LoRA is one LoRA** of rank n r whose alpha is n times larger, built of its own factors: at n = 4 "
        "it trains {times} times LoRA's numbers.",
        test="test_paths.py::test_multi_lora_is_one_lora_of_rank_n_r_and_alpha_n_times_larger",
        measure=_multi_lora_size,
    ),
    Finding(
        text="**Delta-LoRA's update is of low rank.** The moves of W telescope to lambda s (B A - B_K A_K): at r = 4 "
        "the trained update has rank {rank}, which is 2r, of {possible} possible.",
        test="test_delta_lora.py::test_the_update_is_of_rank_2r_at_most",
        measure=_delta_lora_rank,
    ),
    Finding(
        text="**AdaLoRA without its hook is not AdaLoRA.** With target_r = 8 the matrices end at rank {pruned:g} on "
        "average; where nobody calls the hook after the optimizer's step, at {never:g}, and nothing says so. PEFT "
        "leaves that call to the training script.",
        test="test_adalora.py::test_adalora_equals_stock_peft",
        measure=_adalora_ranks,
    ),
    Finding(
        text="**DyLoRA's frozen rows move.** One row of A has a gradient in each step; AdamW's momentum and decay "
        "moved {moved} of 8 in the last step of a short run, as in the official code.",
        test="test_dylora.py::test_which_rows_and_columns_get_a_gradient",
        measure=_dylora_moves,
    ),
    Finding(
        text="**MELoRA trains {times} times fewer numbers on LLaMA-2-7B**, where the paper says 36: {lora:,} in LoRA r "
        "= 64, {melora:,} in MELoRA r = 1.",
        test="test_facts.py::test_published_parameter_counts",
        measure=_llama_parameters,
    ),
    Finding(
        text="**Equal equivalent rank is not equal scale.** The scale is alpha / r with the mini rank: {lora:g} in "
        "LoRA r = 8, {melora:g} in MELoRA r = 1, n = 8. MELoRA's records report both.",
        test="test_facts.py::test_scale_is_alpha_over_the_mini_rank",
        measure=_scales,
    ),
]
