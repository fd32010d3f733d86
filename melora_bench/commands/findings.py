"""What this project found about the methods, each with the test that shows it; the numbers are measured when asked for."""

import torch

from melora_bench.commands.method_facts import SHOWN, attached, count, train
from melora_bench.methods.mplora import path_overlap


def largest(one: list, two: list) -> str:
    return f"{max(abs(a - b) for a, b in zip(one, two, strict=True)):g}"


def distinct(matrices: torch.Tensor) -> int:
    """How many of (n, ...) differ by more than rounding."""
    return len(torch.unique((matrices.detach().flatten(1) * 1e4).round(), dim=0))


def findings() -> list[tuple[str, str]]:
    """What we found, each with the test that shows it."""
    lora = train("lora", "lora_dropout=0")[2]
    mplora = train("mplora", "lora_dropout=0", "n=4", "penalty_weight=0")[2]
    melora = train("melora", "lora_dropout=0", "n=1")[2]
    B = torch.randn(1, 24, 8, generator=torch.Generator().manual_seed(4))
    once, twice = (path_overlap(times * B, 2, "squared_frobenius").item() for times in (1, 2))
    readings = (["path_dropout=shared"], ["path_dropout=shared", "orth=0.1"], ["path_dropout=independent"])
    paths = [distinct(train("share_lora", "n=3", "lora_dropout=0.2", *reading)[0].query.B[0]) for reading in readings]
    several = count(attached("multi_lora", SHOWN, "n=4")[0]) // count(attached("lora", SHOWN)[0])
    delta = train("delta_lora", "r=4", "start_step=3")[0].query.delta_weight()[0].detach().double()
    rank = int(torch.linalg.matrix_rank(delta, rtol=1e-6))
    ranks = [train("adalora", "delta_t=2", steps=24, hook=hook)[1].report(0)["ranks"] for hook in (True, False)]
    pruned, never = (sum(found.values()) / len(found) for found in ranks)
    one_less, all_steps = (train("dylora", "lora_dropout=0", steps=steps)[0].query.A for steps in (11, 12))
    moved = int((all_steps - one_less)[0].abs().sum(1).count_nonzero())
    llama = 64 * count(attached("lora", (4096, 4096), "r=64")[0])  # q and v of 32 layers
    mini_llama = 64 * count(attached("melora", (4096, 4096), "r=1", "n=64")[0])
    scale = attached("lora", SHOWN, "r=8")[0].query.scaling
    mini_scale = attached("melora", SHOWN, "r=1", "n=8")[0].query.scaling
    facts_file, paths_file = "test_facts.py::test_", "test_paths.py::test_"
    return [
        (
            f"**MPLoRA at lambda = 0 is LoRA.** n only partitions the penalty: trained side by side for {len(lora)} steps, "
            f"their losses differ by {largest(lora, mplora)}. The lambda = 0 row of the paper's table 3 is a second "
            "sample of its LoRA row.",
            facts_file + "limits_are_lora_to_the_last_bit",
        ),
        (
            f"**MELoRA at n = 1 is LoRA.** Their losses differ by {largest(lora, melora)}.",
            facts_file + "limits_are_lora_to_the_last_bit",
        ),
        (
            f"**MPLoRA's penalty is quartic in B, and B starts at 0.** Doubling B multiplies it by {twice / once:.4g}. "
            "Records hold `penalty` beside `train_loss`, so that anyone can see whether it mattered.",
            facts_file + "path_overlap_is_the_double_loop",
        ),
        (
            f"**Share-LoRA, read literally, has one path.** Of 3 B_i, {paths[0]} is left distinct after training with one "
            f"dropout mask for all, {paths[1]} with the penalty, and {paths[2]} where each path draws its own mask, which "
            "is our default.",
            paths_file + "share_lora_paths_stay_equal_unless_their_dropout_differs",
        ),
        (
            "**Multi-LoRA is one LoRA** of rank n r whose alpha is n times larger, built of its own factors: at n = 4 it "
            f"trains {several} times LoRA's numbers.",
            paths_file + "multi_lora_is_one_lora_of_rank_n_r_and_alpha_n_times_larger",
        ),
        (
            "**Delta-LoRA's update is of low rank.** The moves of W telescope to lambda s (B A - B_K A_K): at r = 4 the "
            f"trained update has rank {rank}, which is 2r, of {len(delta)} possible.",
            "test_delta_lora.py::test_the_update_is_of_rank_2r_at_most",
        ),
        (
            f"**AdaLoRA without its hook is not AdaLoRA.** With target_r = 8 the matrices end at rank {pruned:g} on "
            f"average; where nobody calls the hook after the optimizer's step, at {never:g}, and nothing says so. PEFT "
            "leaves that call to the training script.",
            "test_adalora.py::test_adalora_equals_stock_peft",
        ),
        (
            "**DyLoRA's frozen rows move.** One row of A has a gradient in each step; AdamW's momentum and decay moved "
            f"{moved} of 8 in the last step of a short run, as in the official code.",
            "test_dylora.py::test_which_rows_and_columns_get_a_gradient",
        ),
        (
            f"**MELoRA trains {llama // mini_llama} times fewer numbers on LLaMA-2-7B**, where the paper says 36: "
            f"{llama:,} in LoRA r = 64, {mini_llama:,} in MELoRA r = 1.",
            facts_file + "published_parameter_counts",
        ),
        (
            f"**Equal equivalent rank is not equal scale.** The scale is alpha / r with the mini rank: {scale:g} in LoRA "
            f"r = 8, {mini_scale:g} in MELoRA r = 1, n = 8. MELoRA's records report both.",
            facts_file + "scale_is_alpha_over_the_mini_rank",
        ),
    ]
