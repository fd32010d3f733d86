"""Training rows per second on the same batches in the same random order: the no-adapter floor, stock PEFT, MELoRA
slice by slice, ours, seeds side by side.

`python scripts/bench_training.py` uses the embedded movie rows; `--data ROOT` (a folder with <task>/train.parquet) uses
MRPC and, for the peers alone, STS-B; `--length N` makes rows of N tokens out of the movie rows. Rows are repeated where
`--rows` asks for more than there are. On a GPU each variant trains two epochs and the second is timed. Writes
results/bench/training_<shape>_<rows>[_bf16][_compiled]_<cpu or gpu>.json and .md. The variants are interleaved in one
process; medians are shown. Compare ratios of one run only.

In float32 it begins with a check: from the same initial values and without dropout, ours and the Trainer's LoRA end at
the same logits to 1e-5.
"""

import argparse
import csv
import gc
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
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
from melora_bench.methods.layers import AdapterLayer, HeadLinear
from melora_bench.records import records
from melora_bench.tasks.batches import epoch_order
from melora_bench.training.build import build as build_parts
from melora_bench.training.build import load_task
from melora_bench.training.configs import compose_run
from melora_bench.training.packed import train
from melora_bench.training.points import Point

RATE, N = 4e-4, 8
TOLERANCE = 1e-5  # of a logit
DROPOUT, ALPHA, RANK = 0.05, 16, 8  # as configs/method has them
METHODS = {
    "LoRA": ["method=lora"],
    "head alone": ["method=head"],
    "LoRA-FA": ["method=lora_fa"],
    "VeRA": ["method=vera"],
    "DyLoRA": ["method=dylora"],
    "AdaLoRA": ["method=adalora", "method.delta_t=1", "method.final_warmup=0.5"],
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


def ignore(model: nn.Module) -> None:
    """Leave the model's dropout as it is."""


def copy_into(module: nn.Module, **tensors: torch.Tensor) -> None:
    """Give a plain module the values of the one replica of ours."""
    for name, value in tensors.items():
        getattr(module, name).data.copy_(value.detach()[0])


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


class OurOrder(torch.utils.data.Sampler):
    """The rows of one epoch after another, in the order in which seed 0 of ours meets them."""

    def __init__(self, lengths: np.ndarray, batch_size: int) -> None:
        self.lengths, self.batch_size, self.epoch = lengths, batch_size, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        batches = epoch_order(self.lengths, seed=0, epoch=self.epoch, batch_size=self.batch_size, bucket=1)
        self.epoch += 1
        return iter(np.concatenate(batches).tolist())


class StockTrainer(transformers.Trainer):
    """transformers.Trainer with batches of our order."""

    def __init__(self, order: OurOrder, **arguments: Any) -> None:
        self.order = order
        super().__init__(**arguments)

    def _get_train_sampler(self, *_: Any) -> OurOrder:
        return self.order


class Bench:
    """Each method trains on the first rows."""

    def __init__(self, options: argparse.Namespace, folder: str, task: str) -> None:
        self.options, self.folder, self.task = options, folder, task
        self.batch, self.precision = options.batch, options.precision
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.epochs = epochs(options)
        if options.length:
            root = self._long()
            data = ["data=local", f"data.root={root}", "task=movie", f"max_length={options.length}"]
        else:
            data = ["data=local", f"data.root={self._repeated()}"] if options.data else []
            data.append(f"task={task}")
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
        loaded = load_task(config, self.backbone)[0]
        self.split, self.labels = loaded.train, loaded.num_labels

    def floor(self, rows: int, bucket: int = 1, *, streams: bool = False, dropout: Callable = ignore) -> Measured:
        """The frozen model, gradients flowing to the embeddings; `dropout` may change its own."""
        model = self.backbone.model(self.labels).train().requires_grad_(False).to(self.device)
        dropout(model)
        embed, first = model.get_input_embeddings(), self.backbone.first_position(model)
        lengths = self.split.lengths[:rows]
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")
        for epoch in range(self.epochs):
            start = self._start()
            for chosen in epoch_order(lengths, seed=0, epoch=epoch, batch_size=self.batch, bucket=bucket):
                batch = self.split.stream(chosen[None], first) if streams else self.split.collate(chosen)
                batch = {name: value.to(self.device) for name, value in batch.items()}
                inputs, labels = embed(batch.pop("input_ids")).requires_grad_(), batch.pop("labels")
                with autocast:
                    logits = model(inputs_embeds=inputs, **batch).logits
                if self.labels == 1:
                    nn.functional.mse_loss(logits.float()[:, 0], labels).backward()
                else:
                    nn.functional.cross_entropy(logits, labels).backward()
        return self._end(rows, start)

    def stock(self, rows: int, adapt: Callable, callbacks: tuple = (), attention: str = "sdpa", **padding) -> Measured:
        """transformers.Trainer on the model that `adapt` makes, with the batches of ours."""
        model = self.backbone.stock(self.labels)
        model.set_attn_implementation(attention)
        clock = Epochs(self._start)
        adapted = adapt(model, self.epochs * -(-rows // self.batch))
        trainer = self._stock_trainer(rows, adapted, (clock, *callbacks), **padding)
        trainer.train()
        return self._end(rows, clock.start)

    def _stock_trainer(self, rows: int, model: nn.Module, callbacks: tuple, **padding) -> StockTrainer:
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
        trainer = StockTrainer(
            OurOrder(self.split.lengths[:rows], self.batch),
            model=model,
            args=arguments,
            callbacks=list(callbacks),
            train_dataset=[{name: column[row] for name, column in cells.items()} for row in range(rows)],
            data_collator=transformers.DataCollatorWithPadding(self.backbone.tokenizer(), **padding),
        )
        trainer.remove_callback(transformers.PrinterCallback)
        return trainer

    def difference(self, rows: int) -> float:
        """The largest difference between the logits of ours and of the Trainer's LoRA after an epoch from the same
        initial values, without dropout, on the model's own head."""
        same = ["method=lora", "method.lora_dropout=0", "backbone.dropout=0", "backbone.pooling=null"]
        same += ["warmup_ratio=0", "weight_decay=0", "seeds=[0]", f"max_train_rows={rows}", f"epochs={self.epochs}"]
        parts = build_parts(Point.of(*compose_run([*self.overrides, *same, f"output_dir={self.folder}"])), [0])
        ours, stock = parts.trainer, self.lora(parts.backbone.stock(self.labels), 0, dropout=0.0)
        for name, module in ours.model.named_modules():
            place = f"base_model.model.{name}"
            if isinstance(module, HeadLinear):
                copy_into(
                    stock.get_submodule(f"{place}.modules_to_save.default"), weight=module.weight, bias=module.bias
                )
            elif isinstance(module, AdapterLayer):
                copy_into(stock.get_submodule(f"{place}.lora_A.default"), weight=module.A)
                copy_into(stock.get_submodule(f"{place}.lora_B.default"), weight=module.B)
        ours.train_steps(ours.schedule.total)
        self._stock_trainer(rows, stock, ()).train()
        batch = self.split.collate(np.arange(min(rows, 64)))
        del batch["labels"]
        batch = {name: value.to(self.device) for name, value in batch.items()}
        with torch.no_grad():
            return float((ours.model.eval()(**batch).logits - stock.eval()(**batch).logits).abs().max())

    def lora(self, model: nn.Module, steps: int, dropout: float = DROPOUT) -> nn.Module:
        return peft.get_peft_model(model, peft.LoraConfig(r=RANK, **self._peft() | {"lora_dropout": dropout}))

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

    def _repeated(self) -> Path:
        """The data root, or one with its training rows again and again where more are asked for than there are."""
        root = Path(self.options.data)
        train = pandas.read_parquet(root / self.task / "train.parquet")
        if self.options.rows <= len(train):
            return root
        folder = Path(self.folder) / "repeated" / self.task
        folder.mkdir(parents=True)
        times = -(-self.options.rows // len(train))
        pandas.concat([train] * times, ignore_index=True).to_parquet(folder / "train.parquet")
        shutil.copy(root / self.task / "validation.parquet", folder)
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
    melora, layout = METHODS[f"MELoRA n={N}"], "layout=auto" if options.compile else "layout=streams"
    peers = {
        "PEFT LoRA + Trainer": partial(bench.stock, rows, bench.lora),
        "PEFT AdaLoRA + Trainer": partial(bench.stock, rows, bench.adalora, (Allocate(),)),
        "MELoRA slice by slice + Trainer": partial(bench.stock, rows, bench.literal),
        f"the same, padded to 256 (official recipe), {2 * options.batch} rows": partial(
            bench.stock, min(rows, 2 * options.batch), bench.literal, padding="max_length", max_length=256
        ),
        "no adapter, padded": partial(bench.floor, rows),
        "no adapter, without padding": partial(bench.floor, rows, streams=True),
        "the same, with our dropout": partial(bench.floor, rows, streams=True, dropout=replace_dropouts),
        "no adapter, padded, rows of like length together, with our dropout": partial(
            bench.floor, rows, 50, dropout=replace_dropouts
        ),
        "ours, LoRA": partial(bench.ours, rows, [*METHODS["LoRA"], layout]),
        f"ours, MELoRA n={N}": partial(bench.ours, rows, [*melora, layout]),
        f"ours, MELoRA n={N}, padded": partial(bench.ours, rows, [*melora, "layout=padded"]),
    }
    if is_flash_attn_2_available():
        peers["PEFT LoRA + Trainer, flash attention 2"] = partial(
            bench.stock, rows, bench.lora, attention="flash_attention_2"
        )
    if options.precision == "no":
        peers[f"ours, MELoRA n={N}, bf16"] = partial(bench.ours, rows, [*melora, "precision=bf16"])
    return {
        "peers": peers,
        "methods": {name: partial(bench.ours, fewer, method) for name, method in METHODS.items()},
        "seeds": {f"R = {R}": partial(bench.ours, least(options), melora, range(R)) for R in options.seeds},
    }


TITLES = {
    "peers": "{rows} rows, r {RANK}, dropout {DROPOUT}; rows/s, and times PEFT's LoRA",
    "methods": "Every method of ours, {few} rows; rows/s, and times LoRA's",
    "seeds": "Seeds side by side, MELoRA n={N}, {least} rows of each; rows/s of all seeds, and times one seed's",
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
    parser.add_argument("--data", help="a data root with mrpc/ and stsb/; default: the embedded movie rows")
    parser.add_argument("--tasks", nargs="+", choices=("mrpc", "stsb"), default=["mrpc", "stsb"], help="with --data")
    parser.add_argument("--length", type=int, help="rows of this many tokens, made of the movie rows")
    parser.add_argument("--to", default=BENCH, help="the folder to write to")
    parser.add_argument("--compare", nargs="+", choices=TITLES, default=["peers", "methods", "seeds"])
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for number, task in enumerate(options.tasks if options.data and not options.length else ["movie"]):
        with tempfile.TemporaryDirectory() as folder:
            report(Bench(options, folder, task), [group for group in options.compare if group == "peers" or not number])


def report(bench: Bench, groups: list[str]) -> None:
    """Measure these groups of variants, print and write them. Raises SystemExit where ours ends elsewhere."""
    options, cuda = bench.options, bench.device.type == "cuda"
    chosen = {group: found for group, found in variants(bench, options).items() if group in groups}
    check = agreement(bench) if options.precision == "no" and not options.compile else None
    bench.floor(2 * options.batch)  # the first pass of a process is slower
    measured: dict[str, dict[str, list]] = {group: {name: [] for name in found} for group, found in chosen.items()}
    for _ in range(options.repeats):
        for group, found in chosen.items():
            for name, measure in found.items():
                gc.collect()  # models in cycles, which would count as the next one's memory
                if cuda:
                    torch.cuda.empty_cache()
                measured[group][name].append(measure())
    rows_of = f"{options.length}_tokens" if options.length else bench.task
    about = [
        f"{rows_of.replace('_', ' ')} rows",
        f"batch {options.batch}",
        "the second of two epochs" if epochs(options) > 1 else "one epoch",
        f"precision {options.precision}",
        f"shape of {options.shape}",
        *["ours compiled"] * options.compile,
        f"median of {options.repeats} interleaved repeats",
    ]
    lines, rows = [", ".join(about), *["", check] * bool(check)], {}
    for group, found in measured.items():
        title = TITLES[group].format(
            **vars(options), few=few(options), least=least(options), RANK=RANK, N=N, DROPOUT=DROPOUT
        )
        head = ["| | rows/s | ratio |" + " peak GB |" * cuda, "| --- | ---: | ---: |" + " ---: |" * cuda]
        lines += ["", title, "", *head]
        rates = {name: statistics.median(one.rate for one in each) for name, each in found.items()}
        for name, rate in rates.items():
            peak = max(one.peak for one in found[name]) if cuda else None
            rows[f"{group}: {name}"] = {"rows_per_second": [one.rate for one in found[name]], "peak_bytes": peak}
            memory = [f"{peak / 1e9:.2f}"] if cuda else []
            cells = [name, f"{rate:.1f}", f"{rate / next(iter(rates.values())):.2f}", *memory]
            lines.append(f"| {' | '.join(cells)} |")
    kinds = "_bf16" * (options.precision == "bf16") + "_compiled" * options.compile
    write(f"training_{options.shape}_{rows_of}{kinds}", vars(options), rows, lines)


def agreement(bench: Bench) -> str:
    """That ours computes what the Trainer's LoRA computes, in words. Raises SystemExit where it does not."""
    rows = min(bench.options.rows, 5 * bench.options.batch)
    difference = bench.difference(rows)
    words = f"after {rows} rows from the same start, without dropout, ours and the Trainer's LoRA differ by"
    if difference > TOLERANCE:
        raise SystemExit(f"{words} {difference:.1e} in a logit: no times of two things that are not the same")
    return f"{words[0].upper()}{words[1:]} at most {difference:.1e} in any logit."


if __name__ == "__main__":
    main()
