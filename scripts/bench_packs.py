"""Seeds of MELoRA n=8 side by side: rows per second of all, memory, and how far each is from the run that it is alone.

`python scripts/bench_packs.py --data ROOT` (a folder with mrpc/train.parquet; without it, the embedded movie rows)
trains two epochs per pack on a GPU, in random order and without dropout, and times the second; the first seeds are
trained alone too. A pack that the memory does not hold ends the list. Writes
results/bench/packs_<shape>_<rows>[_bf16]_<cpu or gpu>.json and .md.
"""

import argparse
import gc
import tempfile

import torch
from bench_adapters import write
from bench_training import METHODS, Bench, N, shape_options

PLAIN = [*METHODS[f"MELoRA n={N}"], "method.lora_dropout=0", "backbone.dropout=0", "bucket=1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("rows", 6144), ("batch", 64), ("alone", 4)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], help="how many seeds to pack")
    options = shape_options(parser)
    cuda = torch.cuda.is_available()
    kind = "MRPC rows" if options.data else "movie rows"
    lines = [
        f"Seeds of MELoRA n={N} side by side, {options.rows} {kind} of each, batch {options.batch} per seed, precision "
        f"{options.precision}, shape of {options.shape}, random order, no dropout, "
        f"{'the second of two epochs' if cuda else 'one epoch'}; loss gap: the largest difference of a seed's mean "
        f"training loss from that of its run alone, of the first {options.alone} seeds",
        "",
        "| | rows/s of all | ratio | loss gap |" + " peak GB | GB per seed |" * cuda,
        "| --- | ---: | ---: | ---: |" + " ---: | ---: |" * cuda,
    ]
    rows: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            argparse.Namespace(**vars(options), length=None, compile=False), folder, "mrpc" if options.data else "movie"
        )
        bench.ours(2 * options.batch, PLAIN)  # the first pass of a process is slower
        alone = [bench.ours(options.rows, PLAIN, [seed]).losses[0] for seed in range(options.alone)]
        for count in options.seeds:
            gc.collect()  # models in cycles, which would count as the next one's memory
            if cuda:
                torch.cuda.empty_cache()
            try:
                found = bench.ours(options.rows, PLAIN, range(count))
            except torch.OutOfMemoryError:
                lines += ["", f"{count} seeds side by side do not fit the device's memory."]
                rows[f"R = {count}"] = {"out_of_memory": True}
                break
            gap = max(abs(a - b) for a, b in zip(found.losses, alone, strict=False))
            rows[f"R = {count}"] = {
                "rows_per_second": found.rate,
                "peak_bytes": found.peak,
                "losses": found.losses,
                "loss_gap": gap,
            }
            cells = [f"R = {count}", f"{found.rate:.1f}"]
            cells += [f"{found.rate / rows[f'R = {options.seeds[0]}']['rows_per_second']:.2f}", f"{gap:.1e}"]
            cells += [f"{found.peak / 1e9:.2f}", f"{found.peak / 1e9 / count:.2f}"] if cuda else []
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    kinds = "_mrpc" if options.data else "_movie"
    write(f"packs_{options.shape}{kinds}{'_bf16' * (options.precision == 'bf16')}", vars(options), rows, lines)


if __name__ == "__main__":
    main()
