"""A new method is one .py and one .yaml: in a copy of the project, two of them pass the contract with nothing else
edited."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from melora_bench.files import ROOT

# LoHa: the entrywise product of two low-rank matrices, a change of the weight that two thin factors do not give.
MATRIX = '''"""FedPara: the Hadamard product of two low-rank matrices. Hyeon-Woo et al., 2022. https://arxiv.org/abs/2108.06098"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from melora_bench.methods.base import Method
from melora_bench.methods.layers import AdapterLayer


class HadamardLayer(AdapterLayer):
    """h = W x + ((B A) * (D C)) x, A and C (R, r, d_in), B and D (R, d_out, r); B starts at 0."""

    form = "matrix"

    def __init__(self, base: nn.Linear, replicas: int, r: int) -> None:
        super().__init__(base, replicas)
        self.A, self.C = (nn.Parameter(torch.empty(replicas, r, base.in_features)) for _ in "AC")
        self.B, self.D = (nn.Parameter(torch.zeros(replicas, base.out_features, r)) for _ in "BD")

    def reset_parameters(self, generators: list[torch.Generator]) -> None:
        for tensor in (self.A, self.C, self.D):
            for one, source in zip(tensor.data, generators, strict=True):
                one.normal_(generator=source)

    def delta_weight(self) -> Tensor:
        return (self.B @ self.A) * (self.D @ self.C)

    def update(self, x: Tensor) -> Tensor:
        return x @ self.delta_weight().mT


@dataclass(kw_only=True)
class Hadamard(Method):
    """Trained: A, B, C, D.

    Parameters: 2 * r * (d_in + d_out)
    Rank: min(r * r, d_in, d_out)
    Cost: 2 * r * d_in * d_out + d_in * d_out
    Departures: none known.
    Tested against: the contract.
    """

    r: int

    def make_layer(self, base: nn.Linear, replicas: int) -> HadamardLayer:
        return HadamardLayer(base, replicas, self.r)
'''

# A bottleneck with a nonlinearity beside the layer: no change of its weight.
FUNCTION = '''"""Parallel adapters: a bottleneck beside a layer. He et al., ICLR 2022. https://arxiv.org/abs/2110.04366"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from melora_bench.methods.base import Method
from melora_bench.methods.layers import AdapterLayer


class BottleneckLayer(AdapterLayer):
    """h = W x + B gelu(A x), A (R, r, d_in), B (R, d_out, r); B starts at 0."""

    form = "function"

    def __init__(self, base: nn.Linear, replicas: int, r: int) -> None:
        super().__init__(base, replicas)
        self.A = nn.Parameter(torch.empty(replicas, r, base.in_features))
        self.B = nn.Parameter(torch.zeros(replicas, base.out_features, r))

    def reset_parameters(self, generators: list[torch.Generator]) -> None:
        for A, source in zip(self.A.data, generators, strict=True):
            A.normal_(generator=source)

    def update(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(x @ self.A.mT) @ self.B.mT


@dataclass(kw_only=True)
class Bottleneck(Method):
    """Trained: A and B.

    Parameters: r * (d_in + d_out)
    Cost: r * (d_in + d_out)
    Departures: none known.
    Tested against: the contract.
    """

    r: int

    def make_layer(self, base: nn.Linear, replicas: int) -> BottleneckLayer:
        return BottleneckLayer(base, replicas, self.r)
'''
YAML = """# {paper}
_target_: melora_bench.methods.{name}.{cls}
version: 1
target_modules: ${{backbone.target_modules}}
r: 2  # small, as a test needs it
"""
METHODS = {"hadamard": ("Hadamard", MATRIX), "bottleneck": ("Bottleneck", FUNCTION)}
CONTRACT = ["tests/methods/test_contract.py", "tests/methods/test_shapes.py", "tests/test_docs.py"]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the package, its configs and its tests, with two methods more."""
    root = tmp_path_factory.mktemp("project")
    for folder in ("melora_bench", "configs", "tests", "scripts"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    for name, (cls, code) in METHODS.items():
        (root / "melora_bench" / "methods" / f"{name}.py").write_text(code)
        paper = re.search(r"https://\S+(?=\"\"\")", code)[0]
        (root / "configs" / "method" / f"{name}.yaml").write_text(YAML.format(paper=paper, name=name, cls=cls))
    return root


def run(project: Path, *arguments: str) -> subprocess.CompletedProcess:
    """pytest in the copy, which imports the copy's package."""
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-m", "not gpu", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(project)}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


def passed(done: subprocess.CompletedProcess) -> int:
    assert done.returncode == 0, done.stdout
    return int(re.search(r"(\d+) passed", done.stdout)[1])


@pytest.mark.slow
def test_a_new_method_passes_the_contract_with_nothing_else_edited(project):
    """A matrix and a function, the two forms that no method here has."""
    assert passed(run(project, *CONTRACT, "-k", " or ".join(METHODS))) == 2 * 13


@pytest.mark.slow
def test_a_new_method_is_trained_and_exported_or_refused_with_nothing_else_edited(project):
    """Runs and records; the matrix is merged, and neither becomes a PEFT folder."""
    assert passed(run(project, "tests/adapters/test_export.py", "-k", " or ".join(METHODS))) == 2 * 4


@pytest.mark.slow
def test_a_new_method_that_breaks_the_contract_fails(project):
    """A function that calls itself a matrix is noticed, by the tensors' names and the bound."""
    path = project / "melora_bench" / "methods" / "hadamard.py"
    whole = path.read_text()
    path.write_text(whole.replace("return x @ self.delta_weight().mT", "return x @ self.delta_weight().mT * 1.001"))
    try:
        done = run(project, CONTRACT[0], "-k", "hadamard and plain_one and float32")
    finally:
        path.write_text(whole)
    assert done.returncode == 1 and re.search(r"output is off by \S+, the bound is \S+", done.stdout), done.stdout
