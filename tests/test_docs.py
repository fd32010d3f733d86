"""docs/methods.md says what the code does: it is what `make docs` writes, its formulas hold, its tests exist."""

import pytest
from helpers import calculated
from hydra.utils import get_class
from method_helpers import METHODS, PACKING

from melora_bench.files import ROOT
from melora_bench.results import methods_page
from melora_bench.results.findings import FINDINGS
from melora_bench.training.configs import compose_run


def test_the_committed_page_is_what_make_docs_writes():
    assert (ROOT / "docs" / "methods.md").read_text() == methods_page.document()


def test_every_finding_names_a_test_that_exists():
    for finding in FINDINGS:
        file, name = finding.test.split("::")
        assert f"def {name}(" in (ROOT / "tests" / "methods" / file).read_text(), finding.test


@pytest.mark.parametrize("shape", [(24, 16), (16, 40)])
@pytest.mark.parametrize("name", PACKING)
def test_a_methods_formulas_hold(name, shape):
    """Parameters, rank and cost as its docstring says equal what one layer has, for d_in != d_out."""
    small = {"r": 4, "init_r": 4, "target_r": 2}
    config = compose_run([f"method={name}"])[0].method
    sizes = {key: value for key, value in small.items() if key in config}
    said = methods_page.facts(get_class(config._target_))
    counted = methods_page.measured(name, shape, *(f"{key}={value}" for key, value in sizes.items()))
    values = {"d_in": shape[0], "d_out": shape[1], **{key: config[key] for key in ("n",) if key in config}, **sizes}
    assert {key: calculated(said.get(key, "0"), values) for key in counted} == counted


def test_every_method_says_what_the_page_shows():
    for name in METHODS:
        said = methods_page.facts(get_class(compose_run([f"method={name}"])[0].method._target_))
        assert {"Departures", "Tested against"} <= said.keys(), name
