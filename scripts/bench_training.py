"""Training rows per second on the same rows: the no-adapter floor, stock PEFT, MELoRA slice by slice, ours, seeds side
by side.

`python scripts/bench_training.py` uses the embedded movie rows; `--data ROOT` (a folder with mrpc/train.parquet) uses
MRPC; `--length N` makes rows of N tokens out of the movie rows. Rows are repeated where `--rows` asks for more than
there are. On a GPU each variant trains two epochs and the second is timed; `--compare random` has every batch in random
order. Writes results/bench/training_<shape>_<rows>[_bf16][_compiled]_<cpu or gpu>.json and .md. The variants are
interleaved in one process; medians are shown. Compare ratios of one run only.
"""

import argparse
import csv
import gc
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas
import peft
import torch
import transformers
from bench_adapters import BENCH, LiteralMELoRA, write
from torch import nn
from transformers.utils import is_flash_attn_2_available

from melora_bench.external.embedded import vader_folder
from melora_bench.external.fields import build
from melora_bench.methods.attach import target_linears
from melora_bench.methods.dropout import replace_dropouts
from melora_bench.records import records
from melora_bench.tasks.batches import epoch_order
from melora_bench.training.build import load_task
from melora_bench.training.configs import compose_run
from melora_bench.training.packed import train
from melora_bench.training.points import Point

RATE, N = 4e-4, 8
DROPOUT, ALPHA, RANK = 0.05, 16, 8  # as configs/method has them
METHODS = {
    "LoRA": ["method=lora"],
    "head alone": ["method=head"],
    "LoRA-FA": ["method=lora_fa"],
    "VeRA": ["method=vera"],
    "DyLoRA": ["method=dylora"],
    "AdaLoRA": ["method=adalora", "method.delta_t=1"],
    "Delta-LoRA": ["method=delta_lora"],
    "Multi-LoRA n=2": ["method=multi_lora"],
    "Share-LoRA n=2": ["method=share_lora"],
    "MPLoRA n=2": ["method=mplora", "method.n=2"],
    "full fine-tuning": ["method=full"],
    **{f"MELoRA n={n}": ["method=melora", f"method.n={n}"] for n in (2, 8, 64)},
}


# What BertConfig's own values, which are RoBERTa-base's shape, are changed to.
SHAPES = {
    "roberta-base": {},
    "tiny": {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128},
}


class Measured(NamedTuple):
    rate: float  # rows per second of the last epoch, of all seeds together
    peak: int | None  # bytes on a GPU
    losses: tuple[float, ...] = ()  # of the last epoch, per seed: what ours trained


class Allocate(transformers.TrainerCallback):
    """What PEFT asks of a loop that trains its AdaLoRA."""

    def on_optimizer_step(self, args, state, control, model, **_) -> None:
        model.base_model.update_and_allocate(state.global_step)


class Epochs(transformers.TrainerCallback):
    """Takes the time at the start of each epoch; the last is kept."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock

    def on_epoch_begin(self, args, state, control, **_) -> None:
        self.start = self.clock()


class Bench:
    """Each method trains on the first rows."""

    def __init__(self, options: argparse.Namespace, folder: str) -> None:
        self.options, self.folder = options, folder
        self.batch, self.precision = options.batch, options.precision
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.epochs = epochs(options)
        if options.length:
            root = self._long()
            data = ["data=local", f"data.root={root}", "task=movie", f"max_length={options.length}"]
        else:
            data = ["data=local", f"data.root={self._mrpc()}", "task=mrpc"] if options.data else ["task=movie"]
        self.overrides = [
            *data,
            "backbone=minilm",
            "max_eval_rows=8",
            f"batch_size={options.batch}",
            f"epochs={self.epochs}",
            f"lr={RATE}",
            f"precision={options.precision}",
            f"compile={options.compile}",
        ]
        if options.shape in SHAPES:
            self.overrides.append(f"backbone.path={random_base(Path(folder), options.shape)}")
        config = compose_run([*self.overrides, f"max_train_rows={options.rows}"])[0]
        self.backbone = build(config.backbone, "backbone")
        self.split = load_task(config, self.backbone)[0].train

    def floor(self, rows: int, bucket: int, dropout: Callable = lambda model: None) -> Measured:
        """The frozen model, gradients flowing to the embeddings; `dropout` may change its own."""
        model = self.backbone.model(2).train().requires_grad_(False).to(self.device)
        dropout(model)
        embed = model.get_input_embeddings()
        lengths = self.split.lengths[:rows]
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")
        for epoch in range(self.epochs):
            start = self._start()
            for chosen in epoch_order(lengths, seed=0, epoch=epoch, batch_size=self.batch, bucket=bucket):
                batch = {name: value.to(self.device) for name, value in self.split.collate(chosen).items()}
                inputs, labels = embed(batch.pop("input_ids")).requires_grad_(), batch.pop("labels")
                with autocast:
                    loss = nn.functional.cross_entropy(model(inputs_embeds=inputs, **batch).logits, labels)
                loss.backward()
        return self._end(rows, start)

    def stock(self, rows: int, adapt: Callable, callbacks: tuple = (), attention: str = "sdpa", **padding) -> Measured:
        """transformers.Trainer on the model that `adapt` makes, batches drawn at random."""
        model = self.backbone.stock(2)
        model.set_attn_implementation(attention)
        arguments = transformers.TrainingArguments(
            output_dir=f"{self.folder}/trainer",
            per_device_train_batch_size=self.batch,
            num_train_epochs=self.epochs,
            learning_rate=RATE,
            bf16=self.precision == "bf16",
            use_cpu=self.device.type == "cpu",
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        columns = {"input_ids": self.split.ids, "token_type_ids": self.split.types}
        cells = {
            name: [flat[a:b].tolist() for a, b in zip(self.split.offsets, self.split.offsets[1:], strict=False)]
            for name, flat in columns.items()
            if flat is not None
        } | {"labels": self.split.labels.tolist()}
        clock = Epochs(self._start)
        trainer = transformers.Trainer(
            model=adapt(model, self.epochs * -(-rows // self.batch)),
            args=arguments,
            callbacks=[clock, *callbacks],
            train_dataset=[{name: column[row] for name, column in cells.items()} for row in range(rows)],
            data_collator=transformers.DataCollatorWithPadding(self.backbone.tokenizer(), **padding),
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
        return self._end(rows, clock.start)

    def lora(self, model: nn.Module, steps: int) -> nn.Module:
        return peft.get_peft_model(model, peft.LoraConfig(r=RANK, **self._peft()))

    def adalora(self, model: nn.Module, steps: int) -> nn.Module:
        config = peft.AdaLoraConfig(init_r=12, target_r=RANK, tinit=0, tfinal=1, total_step=steps, **self._peft())
        return peft.get_peft_model(model, config)

    def literal(self, model: nn.Module, steps: int) -> nn.Module:
        model.requires_grad_(False)
        for name, base in target_linears(model, self.backbone.target_modules):
            model.set_submodule(name, LiteralMELoRA(base, N, RANK, DROPOUT))
        model.get_submodule(self.backbone.head).requires_grad_()
        return model

    def ours(self, rows: int, method: list[str], seeds: Sequence[int] = (0,)) -> Measured:
        """The suite's own run, evaluation not counted; `rows` of each seed. Raises torch.OutOfMemoryError."""
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            places = [f"results_dir={place}/results", f"output_dir={place}/outputs"]
            seed_list = f"seeds={list(seeds)}".replace(" ", "")
            overrides = [*self.overrides, *method, f"max_train_rows={rows}", seed_list, *places]
            found = [records.load(path) for path in train(Point.of(*compose_run(overrides)), list(seeds))]
        if found[0].env["compile"] != ("compile=true" in map(str.lower, self.overrides)):
            raise SystemExit("torch.compile does not work here: measure without --compile")
        last = [record.epochs[-1] for record in found]
        rate = len(seeds) * rows / last[0]["train_seconds"]
        return Measured(rate, found[0].peak_memory_bytes, tuple(entry["train_loss"] for entry in last))

    def _peft(self) -> dict:
        return {
            "task_type": "SEQ_CLS",
            "lora_alpha": ALPHA,
            "lora_dropout": DROPOUT,
            "target_modules": self.backbone.target_modules,
        }

    def _mrpc(self) -> Path:
        """The data root, or one with its training rows again and again where more are asked for than there are."""
        root = Path(self.options.data)
        train = pandas.read_parquet(root / "mrpc" / "train.parquet")
        if self.options.rows <= len(train):
            return root
        folder = Path(self.folder) / "repeated" / "mrpc"
        folder.mkdir(parents=True)
        times = -(-self.options.rows // len(train))
        pandas.concat([train] * times, ignore_index=True).to_parquet(folder / "train.parquet")
        shutil.copy(root / "mrpc" / "validation.parquet", folder)
        return folder.parent

    def _long(self) -> Path:
        """A data root of movie rows, each of so many words in a row that `length` tokens are left after the cut."""
        rows, length = self.options.rows, self.options.length
        folder = Path(self.folder) / "long" / "movie"
        folder.mkdir(parents=True)
        with (vader_folder() / "movie" / "train.csv").open(encoding="utf-8") as file:
            words = " ".join(row["sentence"] for row in csv.DictReader(file)).split()
        step = (len(words) - length) // rows
        lines = [{"sentence": " ".join(words[i * step :][:length]), "label": i % 2} for i in range(rows)]
        for split in ("train", "validation"):
            (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
        return folder.parent

    def _start(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        return time.perf_counter()

    def _end(self, rows: int, start: float) -> Measured:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None
        return Measured(rows / (time.perf_counter() - start), peak)


def random_base(folder: Path, shape: str) -> Path:
    """A checkpoint in `folder` of one of SHAPES with random weights and MiniLM's tokenizer."""
    path = folder / shape
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(transformers.BertConfig(**SHAPES[shape])).save_pretrained(path)
    build(compose_run(["backbone=minilm"])[0].backbone, "backbone").tokenizer().save_pretrained(path)
    return path


def shape_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line of a bench of one shape, on MRPC's or the movie rows, beside the options that `parser` has; the
    library's own lines are turned off."""
    parser.add_argument("--shape", choices=SHAPES, default="roberta-base")
    parser.add_argument("--precision", choices=("no", "bf16"), default="bf16")
    parser.add_argument("--data", help="a data root with mrpc/; default: the embedded movie rows")
    parser.add_argument("--to", default=BENCH, help="the folder to write to")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return parser.parse_args()


def epochs(options: argparse.Namespace) -> int:
    """A GPU's first steps take its memory and choose its kernels: there a first epoch warms up."""
    return 2 if torch.cuda.is_available() else 1


def few(options: argparse.Namespace) -> int:
    """How many rows the longer lists are measured on."""
    return options.rows if torch.cuda.is_available() else max(options.rows // 3, 4 * options.batch)


def least(options: argparse.Namespace) -> int:
    """How many rows of each seed, where seeds are packed."""
    return options.rows if torch.cuda.is_available() else min(options.rows, 3 * options.batch)


def variants(bench: Bench, options: argparse.Namespace) -> dict[str, dict[str, Callable]]:
    """{what is compared: {variant: a call that measures it}}; the first of each is what the others are divided by."""
    rows, fewer = options.rows, few(options)
    melora = METHODS[f"MELoRA n={N}"]
    peers = {
        "PEFT LoRA + Trainer": partial(bench.stock, rows, bench.lora),
        "PEFT AdaLoRA + Trainer": partial(bench.stock, rows, bench.adalora, (Allocate(),)),
        "MELoRA slice by slice + Trainer": partial(bench.stock, rows, bench.literal),
        f"the same, padded to 256 (official recipe), {2 * options.batch} rows": partial(
            bench.stock, min(rows, 2 * options.batch), bench.literal, padding="max_length", max_length=256
        ),
        "no adapter, random order": partial(bench.floor, rows, 1),
        "no adapter, rows of like length together": partial(bench.floor, rows, 50),
        "the same, with our dropout": partial(bench.floor, rows, 50, replace_dropouts),
        "ours, LoRA": partial(bench.ours, rows, METHODS["LoRA"]),
        f"ours, MELoRA n={N}": partial(bench.ours, rows, melora),
    }
    alike = {"PEFT LoRA + Trainer, sdpa": partial(bench.stock, rows, bench.lora)}
    if is_flash_attn_2_available():
        alike["PEFT LoRA + Trainer, flash attention 2"] = partial(
            bench.stock, rows, bench.lora, attention="flash_attention_2"
        )
    alike |= {
        "no adapter": partial(bench.floor, rows, 1),
        "no adapter, with our dropout": partial(bench.floor, rows, 1, replace_dropouts),
        "ours, LoRA": partial(bench.ours, rows, [*METHODS["LoRA"], "bucket=1", "layout=padded"]),
        f"ours, MELoRA n={N}": partial(bench.ours, rows, [*melora, "bucket=1", "layout=padded"]),
        "ours, LoRA, streams": partial(bench.ours, rows, [*METHODS["LoRA"], "bucket=1", "layout=streams"]),
        f"ours, MELoRA n={N}, streams": partial(bench.ours, rows, [*melora, "bucket=1", "layout=streams"]),
    }
    if options.precision == "no":
        peers[f"ours, MELoRA n={N}, bf16"] = partial(bench.ours, rows, [*melora, "precision=bf16"])
    return {
        "peers": peers,
        "methods": {name: partial(bench.ours, fewer, method) for name, method in METHODS.items()},
        "seeds": {f"R = {R}": partial(bench.ours, least(options), melora, range(R)) for R in options.seeds},
        "random": alike,
    }


TITLES = {
    "peers": "{rows} rows, r {RANK}, dropout {DROPOUT}; rows/s, and times PEFT's LoRA",
    "methods": "Every method of ours, {few} rows; rows/s, and times LoRA's",
    "seeds": "Seeds side by side, MELoRA n={N}, {least} rows of each; rows/s of all seeds, and times one seed's",
    "random": "All in random order, {rows} rows, r {RANK}, dropout {DROPOUT}; rows/s, and times PEFT's LoRA",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("rows", 320), ("batch", 32), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 5, 10], help="how many seeds to pack")
    parser.add_argument(
        "--shape", choices=("minilm", *SHAPES), default="minilm", help="roberta-base, tiny: random weights"
    )
    parser.add_argument("--precision", choices=("no", "bf16"), default="no")
    parser.add_argument(
        "--compile", action="store_true", help="ours under torch.compile; compiling is not in the times"
    )
    parser.add_argument("--data", help="a data root with mrpc/; default: the embedded movie rows")
    parser.add_argument("--length", type=int, help="rows of this many tokens, made of the movie rows")
    parser.add_argument("--to", default=BENCH, help="the folder to write to")
    parser.add_argument("--compare", nargs="+", choices=TITLES, default=["peers", "methods", "seeds"])
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, folder)
        chosen = {group: found for group, found in variants(bench, options).items() if group in options.compare}
        bench.floor(2 * options.batch, 1)  # the first pass of a process is slower
        measured: dict[str, dict[str, list]] = {group: {name: [] for name in found} for group, found in chosen.items()}
        for _ in range(options.repeats):
            for group, found in chosen.items():
                for name, measure in found.items():
                    gc.collect()  # models in cycles, which would count as the next one's memory
                    if bench.device.type == "cuda":
                        torch.cuda.empty_cache()
                    measured[group][name].append(measure())
    kind = f"rows of {options.length} tokens" if options.length else "MRPC rows" if options.data else "movie rows"
    about = [
        kind,
        f"batch {options.batch}",
        "the second of two epochs" if epochs(options) > 1 else "one epoch",
        f"precision {options.precision}",
        f"shape of {options.shape}",
        *["ours compiled"] * options.compile,
        f"median of {options.repeats} interleaved repeats",
    ]
    lines = [", ".join(about)]
    rows, cuda = {}, bench.device.type == "cuda"
    for group, found in measured.items():
        title = TITLES[group].format(
            **vars(options), few=few(options), least=least(options), RANK=RANK, N=N, DROPOUT=DROPOUT
        )
        lines += [
            "",
            title,
            "",
            "| | rows/s | ratio |" + " peak GB |" * cuda,
            "| --- | ---: | ---: |" + " ---: |" * cuda,
        ]
        rates = {name: statistics.median(one.rate for one in each) for name, each in found.items()}
        for name, rate in rates.items():
            peak = max(one.peak for one in found[name]) if cuda else None
            rows[f"{group}: {name}"] = {"rows_per_second": [one.rate for one in found[name]], "peak_bytes": peak}
            cells = [name, f"{rate:.1f}", f"{rate / next(iter(rates.values())):.2f}"] + (
                [f"{peak / 1e9:.2f}"] if cuda else []
            )
            lines.append(f"| {' | '.join(cells)} |")
    kinds = "_bf16" * (options.precision == "bf16") + "_compiled" * options.compile
    rows_of = f"{options.length}_tokens" if options.length else "mrpc" if options.data else "movie"
    name = f"training_{options.shape}_{rows_of}{kinds}"
    write(name, vars(options), rows, lines)


if __name__ == "__main__":
    main()
