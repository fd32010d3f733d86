"""Scoring made-up questions with tiny models, as scripts/instructeval.py does it."""

import gzip
import json
import random
from pathlib import Path

from hydra import compose, initialize_config_dir
from instruct_fakes import SMALL, byte_tokenizer, tiny_llama, write_original
from omegaconf import OmegaConf

from melora_bench.files import ROOT
from melora_bench.instructeval.score import score


def save_model(folder: Path) -> Path:
    """A checkpoint of the tiny LLaMA with the byte tokenizer."""
    tiny_llama().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def overrides(place: Path, model: Path) -> tuple[list[str], list[str]]:
    """The overrides for training and for scoring on made-up files, which are written under `place`."""
    write_original(place / "instruct")
    source = random.Random(0)
    terms = [(source.randint(0, 9), source.randint(0, 9)) for _ in range(40)]
    rows = [{"instruction": f"Add {a} and {b}.", "input": "", "output": str(a + b)} for a, b in terms]
    (place / "alpaca.json").write_text(json.dumps(rows))
    folders = [f"results_dir={place}/results", f"output_dir={place}/outputs"]
    shared = ["backbone=smollm2", f"backbone.path={model}", "data=local", *folders]
    quick = ["table=instruct_quickstart", "max_steps=2", "hydra.mode=RUN"]
    train = [*shared, "task=alpaca", f"data.root={place}/alpaca.json", *quick]
    return train, [*shared, f"data.root={place}/instruct"]


def sized(name: str) -> list[str]:
    """Overrides that fit a benchmark to the made-up questions."""
    return [f"benchmark={name}", *(f"benchmark.{key}={value}" for key, value in SMALL[name].items())]


def scored(name: str, given: list[str]) -> list[Path]:
    return composed_score([*sized(name), *given])


def composed_score(given: list[str]) -> list[Path]:
    """What scripts/instructeval.py does with this command line."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("instructeval", given, return_hydra_config=True)
    plain = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    return score(plain, dict(cfg.hydra.runtime.choices))


def stored(record: Path, name: str) -> list[dict]:
    """The rows that lie beside a record, of all subjects of benchmark `name`."""
    rows = []
    for file in sorted((record.with_suffix("") / name).glob("*.jsonl.gz")):
        with gzip.open(file, "rt") as lines:
            rows += [json.loads(line) for line in lines][1:]
    return rows
