"""`melora-bench train`: what the process did before does not matter."""

import subprocess
import sys

import pytest

from melora_bench.files import ROOT

CODE = """
import sys
from melora_bench.training.configs import compose_run
compose_run(["task=movie"])
assert "melora_bench.grids" not in sys.modules
from melora_bench import cli
sys.exit(cli.main(["sweep", "audit", "task=mrpc"]))
"""


@pytest.mark.slow
def test_a_grid_is_found_by_a_process_that_has_composed_a_config_before():
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("error: no point of this table has task=mrpc")
