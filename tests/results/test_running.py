"""`melora_bench.run`: a point trained from Python is the point that the command line trains."""

import pytest

import melora_bench
from melora_bench.results.running import _written
from melora_bench.training.configs import compose_run


def test_a_point_is_trained_once(tiny_roberta, tiny_data, tmp_path):
    settings = {
        "method": "melora",
        "method.n": 2,
        "method.r": 2,
        "backbone": "roberta_base",
        "backbone.path": tiny_roberta,
        "backbone.name": "tiny",
        "data": "local",
        "data.root": tiny_data,
        "task": "sst2",
        "seeds": [0, 1],
        "epochs": 1,
        "max_train_rows": 32,
        "results_dir": tmp_path / "results",
        "output_dir": tmp_path / "outputs",
    }
    records = melora_bench.run(**settings)
    assert [record.seed for record in records] == [0, 1]
    assert records[0].config["method"]["n"] == 2
    assert records == melora_bench.run(**settings)
    assert records == melora_bench.load_records(tmp_path / "results", experiment="adhoc")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "nix"}, "Could not find 'method/nix'"),
        ({"epoch": 1}, "Could not override 'epoch'"),
        ({"epochs": "many"}, "epochs=many must be a positive whole number"),
    ],
)
def test_bad_input(settings, message):
    with pytest.raises(ValueError, match=message) as refused:
        melora_bench.run(**settings)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("value", [1, 2.5, None, True, "a b", "it's", "a,b", [1, "x", None], {"a": 1, "b": [True]}])
def test_a_value_arrives_as_it_is(value):
    config, _ = compose_run([f"init_from={_written(value)}"])
    assert config.init_from == value
