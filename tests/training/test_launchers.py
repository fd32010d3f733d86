"""The launchers that a cluster uses, on this machine: every point of a four-point grid gets its record."""

import importlib.util
import os
import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir

from melora_bench.files import ROOT
from melora_bench.records import records

MODULES = {
    "joblib": "joblib_launcher",
    "processes": "joblib_launcher",
    "submitit_local": "submitit_launcher",
    "ray": "ray_launcher",
}


def needs(launcher: str) -> None:
    sys.path_importer_cache.clear()
    if not importlib.util.find_spec(f"hydra_plugins.hydra_{MODULES[launcher]}"):
        extra = "ray" if launcher == "ray" else "launchers"
        pytest.skip(f"hydra/launcher={launcher} is not installed: pip install -c requirements.lock -e '.[{extra}]'")


LAUNCHERS = ["joblib", "processes", "submitit_local", "ray"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_runs_a_grid(tiny_overrides, tmp_path, launcher):
    """A table's grid of four points, launched in processes of their own."""
    needs(launcher)
    command = [
        sys.executable,
        str(ROOT / "scripts" / "train.py"),
        "-m",
        "table=mplora_table1",
        f"hydra/launcher={launcher}",
    ]
    narrow = ["task=mrpc", "method=share_lora"]
    own = [item for item in tiny_overrides if not item.startswith(("task=", "data=", "backbone="))]
    tiny = ["data=local", "backbone=roberta_base", "backbone.name=tiny", "epochs=1", "max_length=32", "seeds=[0]"]
    done = subprocess.run(
        [*command, *narrow, *own, *tiny, "method.n=2,4"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    written = [records.load(path) for path in (tmp_path / "results").rglob("*.json")]
    assert sorted((r.choices["method"], r.config["method"]["n"], r.config["method"]["orth"]) for r in written) == [
        ("share_lora", 2, 0),
        ("share_lora", 2, 0.1),
        ("share_lora", 4, 0),
        ("share_lora", 4, 0.1),
    ]


def test_slurm_config_composes():
    """One GPU and one array task per point."""
    needs("submitit_local")
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("train", ["hydra/launcher=slurm_gpu", "hydra.launcher.partition=a800"], return_hydra_config=True)
    launcher = cfg.hydra.launcher
    assert (launcher._target_.rsplit(".", 1)[1], launcher.partition) == ("SlurmLauncher", "a800")
    assert (launcher.gpus_per_node, launcher.tasks_per_node, launcher.array_parallelism) == (1, 1, 64)
