"""The bench scripts run to their end and write what they printed; their numbers are nobody's business here."""

import json
import subprocess
import sys

import pytest

from melora_bench.files import ROOT


def bench(script: str, folder, *options: str) -> tuple[dict, str]:
    command = [sys.executable, ROOT / "scripts" / script, *options, "--repeats", "1", "--to", folder]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [data], [table] = folder.glob("*.json"), folder.glob("*.md")
    assert table.read_text() in done.stdout
    return json.loads(data.read_text()), table.read_text()


@pytest.mark.slow
def test_one_layer(tmp_path):
    found, table = bench("bench_adapters.py", tmp_path, "--tokens", "8", "--width", "64")
    assert found["settings"] == {"tokens": 8, "width": 64, "repeats": 1, "seeds": 1}
    assert set(found["about"]) == {"device", "torch", "transformers", "accelerate", "peft", "commit", "dirty"}
    for name in ("frozen", "LoRA, dropout 0.05", "MELoRA n=64, dropout 0", "MELoRA n=8 slice by slice, dropout 0.05"):
        assert found["rows"][name]["fp32_ms"] > 0
        assert f"| {name} | {found['rows'][name]['fp32_ms']:.3g} |" in table


@pytest.mark.slow
def test_llamas_shape(tmp_path):
    small = {"layers": 2, "width": 64, "vocabulary": 100, "batch": 4, "micro": 4, "length": 8, "steps": 1}
    found, table = bench("bench_llama.py", tmp_path, *(word for k, v in small.items() for word in (f"--{k}", str(v))))
    assert found["settings"] == {**small, "repeats": 1, "quantization": None}
    ours = ["ours, LoRA r=8", *(f"ours, MELoRA r=1 {kind}" for kind in ("n=8", "n=64", "n=8, 2 seeds", "n=8, 4 seeds"))]
    assert list(found["rows"]) == ["PEFT LoRA r=8", "no adapter", *ours]
    assert "| PEFT LoRA r=8 | " in table
    assert all(row["seconds"] > 0 for row in found["rows"].values())


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["minilm", "roberta-base"])
def test_training(tmp_path, shape):
    options = ["--shape", shape, "--rows", "4", "--batch", "2", "--seeds", "1", "2"]
    if shape == "roberta-base":
        options += ["--precision", "bf16", "--compare", "peers", "seeds", "--length", "16"]
    found, table = bench("bench_training.py", tmp_path, *options)
    names = ["peers: PEFT LoRA + Trainer", "peers: PEFT AdaLoRA + Trainer", "peers: ours, MELoRA n=8", "seeds: R = 2"]
    assert set(names) <= set(found["rows"])
    assert ("methods: VeRA" in found["rows"]) == (shape == "minilm")
    for name, row in found["rows"].items():
        [rate] = row["rows_per_second"]
        assert f"| {name.partition(': ')[2]} | {rate:.1f} |" in table


def proof(folder, *options: str) -> tuple[str, dict]:
    """A dry run of the GPU's stages: what it printed, and what it says is done."""
    command = [sys.executable, ROOT / "scripts" / "gpu_proof.py", "--dry-run", "--to", folder, *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads((folder / "gpu_proof" / "done.json").read_text())


@pytest.mark.slow
def test_a_stage_is_done_once_unless_it_is_named(tmp_path):
    (tmp_path / "gpu_proof").mkdir()
    others = ("tests", "training", "packs", "llama", "llama_nf4", "profile", "plan")
    (tmp_path / "gpu_proof" / "done.json").write_text(json.dumps({name: {"code": 0} for name in others}))
    printed, done = proof(tmp_path)
    assert "| frozen | " in printed and (tmp_path / "adapters_cpu.md").exists()
    assert done["layers"]["code"] == 0 and done["layers"]["seconds"] > 0
    assert "==" not in proof(tmp_path)[0]


@pytest.mark.slow
def test_no_stage_fails_without_a_gpu(tmp_path):
    done = proof(tmp_path)[1]
    assert {"tests", "layers", "training", "packs", "llama", "profile", "plan"} <= done.keys()
    assert "skipped" in (tmp_path / "tests_cpu.md").read_text()
    for name in ("training_tiny_movie_bf16", "packs_tiny_movie_bf16", "llama", "profile_tiny_movie", "plan"):
        assert json.loads((tmp_path / f"{name}_cpu.json").read_text())["rows"]
    assert "0.0e+00" in (tmp_path / "packs_tiny_movie_bf16_cpu.md").read_text()
