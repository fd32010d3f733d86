"""What a point is called: the settings in which it differs from the other points of its grid."""

import pytest

from melora_bench.files import options
from melora_bench.grids.grid import points
from melora_bench.grids.naming import differing, point_name
from melora_bench.results.tables import load_grid


def names(table: str) -> list[str]:
    jobs = points(load_grid(table)["table"], [])
    return [point_name(job, differing(jobs)) for job in jobs]


@pytest.mark.parametrize(
    ("table", "first"),
    [
        ("mplora_table2", ["mrpc lora", "cola lora"]),
        ("audit", ["movie lora", "movie mplora n=2"]),
        ("quickstart", ["movie head", "tweets head"]),
        ("melora_table3", ["alpaca full", "alpaca lora r=8 backbone=llama2_7b_nf4"]),
    ],
)
def test_names(table, first):
    found = names(table)
    assert found[0] == first[0] and (first[1] in found or first[1].split()[:2] == found[1].split()[:2])


@pytest.mark.parametrize("table", sorted(options("table")))
def test_no_two_points_of_a_table_are_called_alike(table):
    found = names(table)
    assert len(set(found)) == len(found)


def test_values_that_all_points_have_are_not_said():
    jobs = [
        ["task=a", "method=m", "method.r=8", "method.n=2"],
        ["task=a", "method=m", "method.r=8"],
        ["task=a", "method=o", "lr=1"],
    ]
    assert [point_name(job, differing(jobs)) for job in jobs] == ["a m n=2", "a m", "a o"]
