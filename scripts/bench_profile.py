"""Where a GPU's time goes: five training steps of MELoRA n=8 under torch.profiler, after five timed without it.

`python scripts/bench_profile.py --data ROOT` (a folder with mrpc/train.parquet; without it, the embedded movie rows)
prints the kernels that take longest, their launches per step, and the share of the time in which the GPU has nothing to
do. Writes results/bench/profile_<shape>_<rows>_<cpu or gpu>.json and .md; on a CPU, of operators instead of kernels.
"""

import argparse
import tempfile
import time

import torch
from bench_adapters import write
from bench_training import METHODS, Bench, N, shape_options
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from melora_bench.training.build import build
from melora_bench.training.configs import compose_run
from melora_bench.training.points import Point

WARM_UP, STEPS, SHOWN = 5, 5, 20


def measure(bench: Bench, options: argparse.Namespace) -> tuple[float, list]:
    """(seconds of STEPS steps without the profiler, the events of the STEPS steps after them)."""
    cuda = bench.device.type == "cuda"
    rows = (WARM_UP + 2 * STEPS) * options.batch
    overrides = [
        *bench.overrides,
        *METHODS[f"MELoRA n={N}"],
        "bucket=1",
        f"max_train_rows={rows}",
        "epochs=1",
        f"results_dir={bench.folder}/results",
        f"output_dir={bench.folder}/outputs",
    ]
    trainer = build(Point.of(*compose_run(overrides)), [0]).trainer
    profiler = profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * cuda])
    trainer.train_steps(WARM_UP).tolist()  # waits for the device
    started = time.perf_counter()
    trainer.train_steps(WARM_UP + STEPS).tolist()
    seconds = time.perf_counter() - started
    with profiler:
        trainer.train_steps(WARM_UP + 2 * STEPS).tolist()
    return seconds, profiler.key_averages()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    options = shape_options(parser)
    cuda = torch.cuda.is_available()
    rows = (WARM_UP + 2 * STEPS) * options.batch
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            argparse.Namespace(**vars(options), rows=rows, length=None, compile=False),
            folder,
            "mrpc" if options.data else "movie",
        )
        wall, events = measure(bench, options)
    where = DeviceType.CUDA if cuda else DeviceType.CPU
    times = {
        event.key: (event.self_device_time_total if cuda else event.self_cpu_time_total, event.count)
        for event in events
        if event.device_type == where
    }
    busy = sum(taken for taken, _ in times.values()) / 1e6
    launches = sum(event.count for event in events if "LaunchKernel" in event.key) / STEPS
    what = "kernel" if cuda else "operator"
    idle = f", so that the GPU is idle {max(0, 1 - busy / wall):.0%} of the time; {launches:.0f} launches per step"
    lines = [
        f"MELoRA n={N}, batch {options.batch}, precision {options.precision}, shape of {options.shape}, {STEPS} steps",
        "",
        f"{1000 * wall / STEPS:.2f} ms per step without the profiler, of which {1000 * busy / STEPS:.2f} "
        f"ms are in {what}s" + idle * cuda,
        "",
        f"| {what} | ms per step | share | calls per step |",
        "| --- | ---: | ---: | ---: |",
    ]
    found = {}
    for name, (taken, count) in sorted(times.items(), key=lambda item: -item[1][0])[:SHOWN]:
        found[name] = {"ms_per_step": taken / 1e3 / STEPS, "calls_per_step": count / STEPS}
        short = name.replace("|", "/")[:100]
        lines.append(f"| `{short}` | {taken / 1e3 / STEPS:.3f} | {taken / 1e6 / busy:.1%} | {count / STEPS:.0f} |")
    found["all"] = {
        "wall_ms_per_step": 1000 * wall / STEPS,
        "busy_ms_per_step": 1000 * busy / STEPS,
        "launches_per_step": launches,
    }
    rows_of = "mrpc" if options.data else "movie"
    write(f"profile_{options.shape}_{rows_of}", vars(options), found, lines)


if __name__ == "__main__":
    main()
