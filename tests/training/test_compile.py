"""torch.compile: a compiled run is the plain run, for every method, and where nothing compiles too."""

import functools

import pytest
import torch
from conftest import run_point
from helpers import curves, without_dropout
from method_helpers import EXAMPLES, METHODS
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache


@pytest.fixture(scope="module", autouse=True)
def _compiled_here():
    """Nothing that was compiled before is used, and nothing is compiled twice."""
    with fresh_cache():
        yield


@pytest.fixture
def both(tiny_overrides, tmp_path):
    """both(method): the curves of a plain run and of a compiled one."""

    def run(method: str) -> tuple[list[dict], list[dict]]:
        command = [*tiny_overrides, *without_dropout(method), f"method={method}", "lr=0.01", "epochs=4"]
        torch._dynamo.reset()
        counters.clear()
        places = [f"results_dir={tmp_path}/compiled", f"output_dir={tmp_path}/compiled"]
        [compiled] = run_point([*command, *places, "compile=true"])
        [plain] = run_point(command)
        return curves(plain), curves(compiled)

    return run


def assert_equal(plain: list[dict], compiled: list[dict]) -> None:
    for a, b in zip(plain, compiled, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], abs=2e-6)
        assert a["penalty"] == pytest.approx(b["penalty"], rel=1e-4, abs=1e-9)
        assert a["metrics"] == b["metrics"]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_compiled_run_equals_the_plain_one(both, method, monkeypatch):
    """Two methods down to machine code; of the others what can differ: the captured graph and its gradients."""
    if method not in EXAMPLES:
        whole = functools.partialmethod(torch.nn.Module.compile, backend="aot_eager")
        monkeypatch.setattr(torch.nn.Module, "compile", whole)
    plain, compiled = both(method)
    assert counters["frames"]["ok"] > 0 and not counters["graph_break"]
    assert_equal(plain, compiled)


@pytest.mark.slow
def test_one_process_compiles_one_run_after_another(tiny_overrides, monkeypatch):
    """All models share one limit of recompilations, here reached by the first run's training and evaluation."""
    monkeypatch.setattr(torch.nn.Module, "compile", functools.partialmethod(torch.nn.Module.compile, backend="eager"))
    compiled = []
    with torch._dynamo.config.patch(recompile_limit=2):
        for method in ("lora", "melora"):
            counters.clear()
            run_point([*tiny_overrides, f"method={method}", "compile=true"])
            compiled.append((counters["frames"]["ok"], dict(counters["recompile_limit"])))
    assert compiled == [(2, {}), (2, {})]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="takes the C++ compiler away, which a GPU's code does not need")
def test_what_does_not_compile_runs_as_it_is(both, caplog):
    with torch._inductor.config.patch({"cpp.cxx": ("/no/such/compiler",)}):
        plain, compiled = both("lora")
    [line] = [record.getMessage() for record in caplog.records if record.name == "melora_bench.training.trainer"]
    assert line.startswith("compile  it runs as it is: ") and "/no/such/compiler" in line
    assert_equal(plain, compiled)
