"""Everything that needs a GPU to be shown: its tests, and the times and memory of layers, training, packs, LLaMA's
shape.

`python scripts/gpu_proof.py [--stages NAME ...] [--to DIR] [--data ROOT]` runs the stages one after another, each in a
process of its own that is ended after nine minutes, and writes what each found as soon as it is there:
results/bench/*_gpu.json and .md. A second start goes on with the stages that are not done; naming a stage runs it
again. ROOT holds <task>/train.parquet of GLUE (mrpc at least); without it, the embedded movie rows stand in.
`--dry-run` has tiny shapes and no GPU, and keeps its files only with --to: it shows that no stage fails for another
reason. Logs and done.json, which says what is done, are under DIR/gpu_proof.
"""

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_adapters import BENCH, write
from bench_training import random_base

from melora_bench.files import ROOT, write_text
from melora_bench.records.provenance import git_state
from melora_bench.training.processes import interruptible

LIMIT = 540  # seconds of one stage
SCRIPTS = ROOT / "scripts"
STAGES = ("tests", "layers", "training", "packs", "llama", "llama_nf4", "profile", "plan")  # the most valuable first


def commands(options: argparse.Namespace, scratch: Path) -> dict[str, list]:
    """The command of each stage."""
    dry, data = options.dry_run, ["--data", options.data.absolute()] if options.data else []
    shape = ["--shape", "tiny" if dry else "roberta-base", "--precision", "bf16", *data]
    to = ["--to", options.to.absolute()]
    layers = ["--tokens", "8", "--width", "64", "--repeats", "1"] if dry else ["--tokens", "4096"]
    training = ["--rows", "8", "--batch", "4", "--repeats", "1"] if dry else ["--rows", "8192", "--batch", "64"]
    packs = ["--rows", "8", "--batch", "4", "--seeds", "1", "2", "--alone", "2"] if dry else []
    llama = "--layers 2 --width 64 --vocabulary 100 --batch 4 --micro 4 --length 8 --steps 1 --repeats 1".split()
    llama = llama if dry else ["--steps", "2", "--repeats", "2"]
    return {
        "tests": [
            sys.executable,
            *"-m pytest -m gpu -rA --tb=short --show-capture=no".split(),
            ROOT / "tests" / "test_gpu.py",
        ],
        "layers": [sys.executable, SCRIPTS / "bench_adapters.py", *layers, *to],
        "training": [sys.executable, SCRIPTS / "bench_training.py", "--compare", "peers", *training, *shape, *to],
        "packs": [sys.executable, SCRIPTS / "bench_packs.py", *packs, *shape, *to],
        "llama": [sys.executable, SCRIPTS / "bench_llama.py", *llama, *to],
        "llama_nf4": [
            sys.executable,
            SCRIPTS / "bench_llama.py",
            *llama,
            *"--quantization nf4 --repeats 1".split(),
            *to,
        ],
        "profile": [sys.executable, SCRIPTS / "bench_profile.py", *["--batch", "4"] * dry, *shape, *to],
        "plan": [sys.executable, SCRIPTS / "plan.py", "melora_table2", *plan(options, scratch)],
    }


def plan(options: argparse.Namespace, scratch: Path) -> list[str]:
    """Overrides that plan the table on what is here: random weights of RoBERTa-base's shape, and the tasks of the
    data."""
    shape = "tiny" if options.dry_run else "roberta-base"
    root = options.data.absolute() if options.data else scratch
    overrides = [
        f"backbone.path={scratch / shape}",
        f"backbone.name=random_{shape.replace('-', '_')}",
        "precision=bf16",
        "data=local",
        f"data.root={root}",
        *["method=lora"] * options.dry_run,
    ]
    if options.data:
        tasks = sorted(path.parent.name for path in Path(options.data).glob("*/train.parquet"))
        overrides.append(f"task={','.join(tasks)}")
    return overrides


def run(command: list, log: Path, *, cpu: bool) -> dict:
    """Run a stage, its output to the log; what done.json keeps of it."""
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": ""} if cpu else {})
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    started = time.perf_counter()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        process = subprocess.Popen(
            [*map(str, command)], stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=ROOT
        )
        try:
            code = process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
            file.write(f"ended: it took more than {LIMIT} s\n")
        except BaseException:
            process.kill()
            raise
    return {"code": code, "seconds": round(time.perf_counter() - started, 1), "commit": git_state()["commit"]}


def keep(name: str, text: str, options: argparse.Namespace) -> None:
    """Write what a stage printed that writes no table of its own."""
    if name == "tests":
        lines = re.findall(r"^(?:PASSED|FAILED|ERROR|SKIPPED) .*$", text, re.MULTILINE)
        last = text.strip().splitlines()[-1].strip("= ")
        write(
            "tests",
            {"to": options.to},
            {"summary": last, "tests": lines},
            [f"`pytest -m gpu`: {last}", "", *(f"* {line}" for line in lines)],
        )
    if name == "plan":
        write("plan", {"to": options.to}, {"plan": text.strip().splitlines()}, ["```", text.strip(), "```"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--stages", nargs="+", choices=STAGES, help="only these, done or not; default: all that are not done"
    )
    parser.add_argument("--to", type=Path, help="the folder to write to; default: results/bench")
    parser.add_argument("--data", type=Path, help="a folder of GLUE with mrpc/train.parquet")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU")
    options = parser.parse_args()
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        options.to = options.to or (Path(folder) if options.dry_run else BENCH)
        place = options.to.absolute() / "gpu_proof"
        done = json.loads((place / "done.json").read_text()) if (place / "done.json").exists() else {}
        stages = commands(options, Path(folder))
        for name in options.stages or [name for name in STAGES if done.get(name, {}).get("code") != 0]:
            if name == "llama_nf4" and not importlib.util.find_spec("bitsandbytes"):
                print(
                    "== llama_nf4 is left out: it needs bitsandbytes (pip install -c requirements.lock -e '.[qlora]')"
                )
                continue
            if name == "plan":
                random_base(Path(folder), "tiny" if options.dry_run else "roberta-base")
            print(f"== {name}", flush=True)
            done[name] = run(stages[name], place / f"{name}.log", cpu=options.dry_run)
            text = (place / f"{name}.log").read_text()
            print("\n".join(text.splitlines()[-40:]), flush=True)
            keep(name, text, options)
            write_text(place / "done.json", json.dumps(done, indent=1) + "\n")
            print(f"== {name}: code {done[name]['code']} after {done[name]['seconds']} s", flush=True)
            failed += [name] * (done[name]["code"] != 0)
    if failed:
        print(f"failed: {', '.join(failed)}; the logs are in {place}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    with interruptible("the same command goes on with the stages that are not done"):
        sys.exit(main())
