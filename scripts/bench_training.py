"""Training rows per second on the same rows, one process after another: the no-adapter floor, stock PEFT, and ours.

`python scripts/bench_training.py` uses the embedded movie rows; `--data ROOT` (a folder with mrpc/train.parquet) uses MRPC.
The variants are interleaved and repeated; medians and their ratios are printed. Compare ratios within one run only.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time

VARIANTS = {
    "floor, random order": "frozen forward and backward to the inputs, no adapter, padded per batch",
    "floor, bucketed": "the same with rows of like length in a batch, as we draw them",
    "PEFT LoRA + Trainer": "stock peft and transformers.Trainer, dynamic padding, random order",
    "ours, LoRA": "r 8",
    "ours, MELoRA n=8": "r 8",
}
RATE, DROPOUT, ALPHA, RANK = 4e-4, 0.05, 16, 8


def overrides(options: argparse.Namespace) -> list[str]:
    source = (
        ["data=local", f"data.root={options.data}", "task=mrpc"] if options.data else ["data=embedded", "task=movie"]
    )
    rows = [f"max_train_rows={options.rows}", "max_eval_rows=8", f"batch_size={options.batch}", "epochs=1"]
    method = [f"method.lora_dropout={DROPOUT}", f"method.alpha={ALPHA}", f"method.r={RANK}"]
    return [*source, *rows, f"lr={RATE}", *method]


def load(options: argparse.Namespace):
    """The backbone and the tokenised training rows, through the suite's own loaders."""
    from hydra.utils import instantiate

    from melora_bench.points import compose_run

    cfg, _ = compose_run(overrides(options))
    task, backbone, source = (instantiate(cfg[group], _convert_="all") for group in ("task", "backbone", "data"))
    limits = {"max_length": cfg.max_length, "max_train_rows": cfg.max_train_rows, "max_eval_rows": cfg.max_eval_rows}
    task.load(source, backbone.tokenizer(), **limits)
    return backbone, task.train


def floor(options: argparse.Namespace, bucket: int) -> float:
    """Seconds of one epoch of the frozen model, gradients flowing to the embeddings."""
    import torch

    from melora_bench.batches import epoch_order

    backbone, split = load(options)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = backbone.model(2).train().requires_grad_(False).to(device)
    embed = model.get_input_embeddings()
    start = time.perf_counter()
    for rows in epoch_order(split.lengths, seed=0, epoch=0, batch_size=options.batch, bucket=bucket):
        batch = {name: value.to(device) for name, value in split.collate(rows).items()}
        inputs = embed(batch.pop("input_ids")).requires_grad_()
        labels = batch.pop("labels")
        torch.nn.functional.cross_entropy(model(inputs_embeds=inputs, **batch).logits, labels).backward()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def stock(options: argparse.Namespace) -> float:
    """Seconds of one epoch of PEFT's LoRA under transformers.Trainer."""
    import peft
    import transformers

    backbone, split = load(options)
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules=backbone.target_modules
    )
    names = ("input_ids", "token_type_ids", "labels")
    parts = [[int(v) for v in split.labels]]
    flat = [split.ids] + ([split.types] if split.types is not None else [])
    parts[:0] = [
        [array[a:b].tolist() for a, b in zip(split.offsets, split.offsets[1:], strict=False)] for array in flat
    ]
    names = [name for name in names if name != "token_type_ids" or split.types is not None]
    rows = [dict(zip(names, row, strict=True)) for row in zip(*parts, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder, per_device_train_batch_size=options.batch, num_train_epochs=1, learning_rate=RATE,
            report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = transformers.Trainer(
            model=peft.get_peft_model(backbone.model(2), config), args=arguments, train_dataset=rows,
            data_collator=transformers.DataCollatorWithPadding(backbone.tokenizer()),
        )  # fmt: skip
        return trainer.train().metrics["train_runtime"]


def ours(options: argparse.Namespace, *method: str) -> float:
    """Seconds of one epoch through the suite's own run, evaluation not counted."""
    from melora_bench import records
    from melora_bench.points import compose_run
    from melora_bench.run import run

    with tempfile.TemporaryDirectory() as folder:
        places = [f"results_dir={folder}/results", f"output_dir={folder}/outputs"]
        cfg, choices = compose_run([*method, *overrides(options), *places])
        [path] = run(cfg, choices)
        return records.load(path).epochs[0]["train_seconds"]


def measure(variant: str, options: argparse.Namespace) -> float:
    if variant == "floor, random order":
        return floor(options, bucket=1)
    if variant == "floor, bucketed":
        return floor(options, bucket=50)
    if variant == "PEFT LoRA + Trainer":
        return stock(options)
    return ours(options, *(["method=lora"] if variant == "ours, LoRA" else ["method=melora", "method.n=8"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=480)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data", help="a data root with mrpc/; default: the embedded movie rows")
    parser.add_argument(
        "--variant", choices=VARIANTS, help=argparse.SUPPRESS
    )  # one measurement, in a process of its own
    options = parser.parse_args()
    if options.variant:
        print(json.dumps(measure(options.variant, options)))
        return
    seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for _ in range(options.repeats):
        for variant in VARIANTS:
            command = [sys.executable, __file__, *sys.argv[1:], "--variant", variant]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{variant} failed:\n{done.stderr}")
            seconds[variant].append(json.loads(done.stdout.splitlines()[-1]))
    rates = {variant: options.rows / statistics.median(times) for variant, times in seconds.items()}
    task = "MRPC" if options.data else "movie"
    print(f"{options.rows} {task} rows, batch {options.batch}, one epoch, median of {options.repeats}")
    print("| variant | rows/s | x PEFT + Trainer | x bucketed floor | |\n| --- | ---: | ---: | ---: | --- |")
    for variant, rate in rates.items():
        ratios = [rate / rates[other] for other in ("PEFT LoRA + Trainer", "floor, bucketed")]
        print(f"| {variant} | {rate:.1f} | {ratios[0]:.2f} | {ratios[1]:.2f} | {VARIANTS[variant]} |")


if __name__ == "__main__":
    main()
