from conftest import run_point

from melora_bench import records


def test_one_run_writes_one_record_per_seed(tiny_overrides):
    paths = run_point([*tiny_overrides, "seeds=[0,1]"])
    found = [records.load(path) for path in paths]
    assert [record.seed for record in found] == [0, 1]
    assert run_point([*tiny_overrides, "seeds=[0,1]"]) == []
