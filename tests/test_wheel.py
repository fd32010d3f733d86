"""The built package, installed outside any checkout: its commands train, tabulate and report in an empty folder."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from melora_bench import __version__
from melora_bench.files import ROOT, options
from melora_bench.results import published

# Not by find_spec: where pip is looked for, setuptools leaves distutils to Python, and torch's compiler then fails.
INSTALLED = {distribution.name for distribution in importlib.metadata.distributions()}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("setuptools" not in INSTALLED, reason="setuptools is not installed: no wheel is built"),
    pytest.mark.skipif("pip" not in INSTALLED, reason="pip is not installed: no wheel is built"),
]
SOURCES = ("melora_bench", "configs", "results/published", "pyproject.toml", "setup.py", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of a copy of the sources, as building leaves files beside them."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, source / name)
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", built, source]
    subprocess.run([sys.executable, "-m", "pip", *map(str, build)], check=True)
    [path] = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def program(wheel, tmp_path_factory):
    """program(*arguments, cwd=DIR): melora-bench of an environment that has the wheel and, beside it, the
    dependencies."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    install = ["--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run([sys.executable, "-m", "pip", *map(str, install)], check=True)
    [packages] = folder.glob("lib/python*/site-packages")
    places = sorted({sysconfig.get_path(name) for name in ("purelib", "platlib")})
    (packages / "dependencies.pth").write_text("\n".join(places))
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "HYDRA_FULL_ERROR")}

    def run(*arguments: str, cwd: Path, name: str = "melora-bench") -> subprocess.CompletedProcess:
        command = [str(folder / "bin" / name), *arguments]
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)

    return run


def test_the_wheel_holds_configs_numbers_and_the_page(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    for folder, place, pattern in (("configs", "configs", "*.yaml"), ("results/published", "published", "*.csv")):
        there = {str(path.relative_to(ROOT / folder)) for path in (ROOT / folder).rglob(pattern)}
        inside = {
            name.removeprefix(f"melora_bench/{place}/") for name in names if name.startswith(f"melora_bench/{place}/")
        }
        assert inside == there and there
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "melora_bench").rglob("*.py")}
    assert modules <= names and "melora_bench/results/report.html" in names
    assert {name.partition("/")[0] for name in names} == {"melora_bench", f"melora_bench-{__version__}.dist-info"}


@pytest.fixture
def empty(tmp_path) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


@pytest.fixture
def tiny(tiny_roberta, tiny_data, tmp_path) -> list[str]:
    """One point of the quickstart on the tiny model and data."""
    shutil.copytree(tiny_data / "sst2", tmp_path / "data" / "movie")
    return [
        "task=movie",
        "method=lora",
        "backbone=roberta_base",
        f"backbone.path={tiny_roberta}",
        "backbone.name=tiny",
        "data=local",
        f"data.root={tmp_path}/data",
        "seeds=[0]",
        "max_length=32",
    ]


def test_a_point_is_trained_and_tabled_in_an_empty_folder(program, empty, tiny):
    done = program("sweep", "quickstart", *tiny, cwd=empty)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout + done.stderr
    assert said.count("records will not say which commit made them: ") == 1 and "is an installed package" in said
    [record] = (empty / "outputs" / "quickstart" / "runs").rglob("*.json")
    assert json.loads(record.read_text())["git"] == {"commit": None, "dirty": None}
    assert re.search(r"\| LoRA r=8 \| [\d,]+ \| \d+\.\d\d", done.stdout), done.stdout
    status = program("status", "quickstart", *tiny, cwd=empty)
    assert status.returncode == 0 and "): 1 done, 0 running, 0 failed, 0 missing" in status.stdout, status
    report = program("report", "results_dir=outputs/quickstart", cwd=empty)
    assert report.returncode == 0 and "What we found" not in (empty / "outputs/quickstart/report.html").read_text(), (
        report
    )


def test_what_a_package_knows(program, empty):
    code = (
        "from melora_bench.files import CONFIGS, PUBLISHED, ROOT, options\n"
        "from melora_bench.results.published import load\n"
        "import json, melora_bench\n"
        "print(json.dumps([melora_bench.__version__, sorted(options('table')), len(load('melora')), "
        "str(ROOT), str(CONFIGS)]))"
    )
    done = program("-c", code, cwd=empty, name="python")
    version, tables, cells, root, configs = json.loads(done.stdout)
    assert (version, root) == (__version__, ".") and configs.endswith("site-packages/melora_bench/configs")
    assert (tables, cells) == (sorted(options("table")), len(published.load("melora")))
    assert program("--version", cwd=empty).stdout == f"melora_bench {__version__}\n"


def test_what_fails_outside_a_checkout_is_one_line(program, empty, tiny):
    slip = program("stats", cwd=empty)
    assert (slip.returncode, slip.stdout) == (2, "")
    assert slip.stderr == "error: stats is no command of melora-bench: did you mean status?\n"
    for places in (["output_dir=/proc/nowhere"], ["results_dir=/proc/nowhere"]):
        done = program("train", *tiny, *places, cwd=empty)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert len(re.findall(r"error: .*/proc/nowhere", done.stdout + done.stderr)) == 1, done
    done = program("train", "-m", *tiny, "output_dir=/proc/nowhere", cwd=empty)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1) and done.stderr.startswith("error: /proc/nowhere")
    assert not list(empty.rglob("*.json"))
