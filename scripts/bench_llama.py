"""A step of LLaMA-2-7B's shape with random weights: seconds and peak memory of stock PEFT's LoRA, no adapter, and ours.

`python scripts/bench_llama.py` needs a GPU with about 40 GB; `--layers 2 --width 64 --vocabulary 100` runs anywhere.
Forward, backward and AdamW on `batch` rows of `length` tokens, in micro-batches, under bf16. A pack of R seeds trains
`batch` rows of each: a micro-batch of as many rows as one seed's is shared out among them, so that a step has R times
as many. `--quantization nf4` packs the frozen linear layers into 4 bits (bitsandbytes). Writes
results/bench/llama[_nf4]_<cpu or gpu>.json and .md. The variants follow one another in every repeat, each on a model of
its own; medians are shown.
"""

import argparse
import gc
import importlib.util
import statistics
import time
from collections.abc import Callable

import peft
import torch
import transformers
from bench_adapters import BENCH, write
from torch import nn

from melora_bench.external.fields import build
from melora_bench.training.configs import compose_run

MELORA = ["method=melora", "method.r=1", "method.n=8"]
OURS = {  # the method, and how many seeds of it
    "ours, LoRA r=8": (["method=lora"], 1),
    "ours, MELoRA r=1 n=8": (MELORA, 1),
    "ours, MELoRA r=1 n=64": (["method=melora", "method.r=1", "method.n=64"], 1),
    "ours, MELoRA r=1 n=8, 2 seeds": (MELORA, 2),
    "ours, MELoRA r=1 n=8, 4 seeds": (MELORA, 4),
}


def backbone(options: argparse.Namespace, device: torch.device) -> nn.Module:
    """A random model, frozen, in bfloat16."""
    config = transformers.LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.width,
        intermediate_size=43 * options.width // 16,
        num_hidden_layers=options.layers,
        num_attention_heads=max(options.width // 128, 1),
        use_cache=False,
    )
    torch.manual_seed(0)
    with device:
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    if options.quantization:
        pack(model, device)
    return model.requires_grad_(False).train()


def pack(model: nn.Module, device: torch.device) -> None:
    """Put 4-bit linear layers (nf4, double quantisation) in the place of all but the output's, in place."""
    import bitsandbytes

    for name, base in list(model.named_modules()):
        if isinstance(base, nn.Linear) and name != "lm_head":
            layer = bitsandbytes.nn.Linear4bit(
                base.in_features,
                base.out_features,
                bias=False,
                compute_dtype=torch.bfloat16,
                quant_type="nf4",
                device="meta",
            )
            layer.weight = bitsandbytes.nn.Params4bit(
                base.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True
            )
            model.set_submodule(name, layer.to(device))
    model.is_loaded_in_4bit = True  # PEFT asks


def stock(model: nn.Module) -> nn.Module:
    config = peft.LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, target_modules=["q_proj", "v_proj"])
    return peft.get_peft_model(model, config)


def frozen(model: nn.Module) -> nn.Module:
    """No adapter: gradients flow to the embeddings."""
    model.enable_input_require_grads()
    return model


def ours(method: list[str], seeds: int) -> Callable[[nn.Module], nn.Module]:
    def adapt(model: nn.Module) -> nn.Module:
        adapter = build(compose_run([*method, "backbone=llama2_7b", "task=alpaca"])[0].method, "method")
        adapter.attach(model, "", list(range(seeds)), total_steps=100)
        return model

    return adapt


def measure(adapt: Callable, seeds: int, options: argparse.Namespace, device: torch.device) -> tuple[float, int | None]:
    """(median seconds of the steps after the first per seed, peak bytes on a GPU) of one adapted model."""
    cuda = device.type == "cuda"
    model = adapt(backbone(options, device)).to(device)
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-4, fused=True) if trained else None
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(options.steps + 1):
        start = time.perf_counter()
        for _ in range(seeds * options.batch // options.micro):
            ids = torch.randint(options.vocabulary, (options.micro, options.length), device=device)
            with torch.autocast(device.type, torch.bfloat16):
                model(input_ids=ids, labels=ids).loss.backward()
        if optimizer:
            optimizer.step()
            optimizer.zero_grad()
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if cuda else None
    del model, trained, optimizer
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
    return statistics.median(times[1:]) / seeds, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {
        "layers": 32,
        "width": 4096,
        "vocabulary": 32000,
        "batch": 128,
        "micro": 8,
        "length": 256,
        "steps": 3,
        "repeats": 3,
    }
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--quantization", choices=("nf4",), help="of the frozen linear layers; default: bfloat16")
    parser.add_argument("--to", default=BENCH, help="the folder to write to")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.quantization and not importlib.util.find_spec("bitsandbytes"):
        raise SystemExit("--quantization nf4 needs bitsandbytes: pip install -c requirements.lock -e '.[qlora]'")
    variants = {"PEFT LoRA r=8": (stock, 1), "no adapter": (frozen, 1)}
    variants |= {name: (ours(method, seeds), seeds) for name, (method, seeds) in OURS.items()}
    found: dict[str, list] = {name: [] for name in variants}
    for _ in range(options.repeats):
        for name, (adapt, seeds) in variants.items():
            found[name].append(measure(adapt, seeds, options, device))
            print(name, *found[name][-1], flush=True)
    rows, cuda = {}, device.type == "cuda"
    lines = [
        f"{options.layers} layers of width {options.width}, a step of {options.batch} x {options.length} tokens in "
        f"micro-batches of {options.micro} rows, {options.quantization or 'bf16'} weights, bf16; seconds per step and "
        f"seed, median of {options.repeats}",
        "",
        "| | s | ratio |" + " peak GB |" * cuda,
        "| --- | ---: | ---: |" + " ---: |" * cuda,
    ]
    for name, each in found.items():
        seconds, peak = statistics.median(one for one, _ in each), max(one for _, one in each) if cuda else None
        rows[name] = {"seconds": seconds, "peak_bytes": peak}
        cells = [name, f"{seconds:.2f}", f"{seconds / rows['PEFT LoRA r=8']['seconds']:.2f}"]
        cells += [f"{peak / 1e9:.1f}"] if cuda else []
        lines.append(f"| {' | '.join(cells)} |")
    write(f"llama{'_nf4' * bool(options.quantization)}", vars(options), rows, lines)


if __name__ == "__main__":
    main()
