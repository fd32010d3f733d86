"""docs/methods.md says what the code does: it is what `make docs` writes, its formulas hold, its tests exist."""

import re

import pytest
from helpers import calculated
from hydra.utils import get_class
from method_helpers import METHODS, PACKING

from melora_bench.files import ROOT
from melora_bench.results import methods_page
from melora_bench.results.findings import FINDINGS
from melora_bench.training.configs import RunConfig, compose_run
from melora_bench.training.schedule import Schedule


@pytest.mark.slow
def test_the_committed_page_is_what_make_docs_writes():
    assert (ROOT / "docs" / "methods.md").read_text() == methods_page.document()


def test_every_finding_names_a_test_that_exists():
    for finding in FINDINGS:
        file, name = finding.test.split("::")
        assert f"def {name}(" in (ROOT / "tests" / "methods" / file).read_text(), finding.test


def test_every_departure_names_a_file_and_a_key_that_exist():
    """The last column of docs/departures.md: files or folders, and keys or names that stand in (one of) them."""
    last = [line.split(" | ")[-1].rstrip(" |") for line in departures() if line.startswith("| ")][2:]
    assert len(last) > 20
    for cell in last:
        places, _, keys = cell.partition(":")
        found = [
            ROOT / (place if "/" in place else f"docs/{place}") for place in re.findall(r"[`(]([\w./]+)[`)]", places)
        ]
        files = [path for place in found for path in sorted(place.rglob("*.yaml")) or [place]]
        assert files and all(file.is_file() for file in files), cell
        texts = [file.read_text() for file in files]
        for key in re.findall(r"`([\w.]+)`", keys):
            assert any(re.search(rf"\b{key.split('.')[-1]}: ", text) for text in texts), cell


def test_alpacas_steps_are_those_that_the_page_of_departures_says():
    """49,760 training rows in batches of 128, 3 epochs: the official code rounds the steps of an epoch down."""
    table = compose_run(["table=melora_table3", "method=lora", "method.r=8"])[0]
    config = RunConfig.of(table)
    rows = 51_760 - config.task["validation_rows"]
    schedule = Schedule.of(config, rows)
    ends = [min(schedule.round * (number + 1), schedule.total) for number in range(schedule.rounds)]
    said = {line.split(" | ")[0]: line.split(" | ")[2:4] for line in departures() if line.startswith("| Alpaca's")}
    assert (
        schedule.total == 1167 and 3 * (rows // config.batch_size) == 1164 and ends == [200, 400, 600, 800, 1000, 1167]
    )
    assert [text[:5] for text in said["| Alpaca's steps"]] == ["1,164", "1,167"]
    assert said["| Alpaca's last evaluation"] == ["every 200 steps alone", "every 200 steps and after the last"]
    assert (config.precision, config.backbone["dtype"]) == ("bf16", "bfloat16")
    assert said["| Alpaca's frozen weights"][1].startswith("bfloat16 under bf16 autocast in the tables")
    assert said["| Alpaca's loss over micro-batches"][1] == "mean over the tokens of the step"


def departures() -> list[str]:
    return (ROOT / "docs" / "departures.md").read_text().splitlines()


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
