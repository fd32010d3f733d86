"""A table's YAML: what it may say, how a slip is refused, and the page that documents it."""

import re

import pytest
import yaml

from melora_bench.files import ROOT, options
from melora_bench.grids import tables_page
from melora_bench.grids.jobs import jobs
from melora_bench.grids.schema import documented
from melora_bench.grids.tables import Row, Table, load_table

FILE = "configs/table/mine.yaml"
LORA = {"label": "LoRA", "settings": {"method": "lora"}}
MELORA = {"label": "MELoRA", "settings": {"method": "melora", "method.n": [2, 4]}, "over": "method.n"}


def table(*rows: object, **keys: object) -> Table:
    node = {"title": "A title", "tasks": ["mrpc", "rte"], "rows": list(rows) or [LORA, MELORA], **keys}
    return Table.of(node, FILE, experiment="mine")


def without(mapping: dict, key: str) -> dict:
    return {name: value for name, value in mapping.items() if name != key}


def test_what_is_left_out_has_a_default():
    """The average of three tables is no average: neither the key nor a column is needed."""
    made = table()
    assert (made.paper, made.average, made.speed, made.backbone) == (None, None, False, "roberta_base")
    assert made.columns == made.trained_tasks == ["mrpc", "rte"]
    assert (made.rows[0].over, made.rows[1].values("method.n"), made.rows[0].values("method.n")) == (
        None,
        ["2", "4"],
        [""],
    )
    assert table(trained_on="alpaca").trained_tasks == ["alpaca"]
    assert table(average="average of 2").columns == ["mrpc", "rte", "average of 2"]


def test_rows_are_compared_with_the_row_they_name_or_the_first_of_lora():
    other = {"label": "LoRA r=4", "settings": {"method": "lora", "method.r": 4}}
    made = table(MELORA | {"reference": "LoRA r=4"}, LORA, other)
    assert [made.reference(row) for row in made.rows] == ["LoRA r=4", "LoRA", "LoRA"]
    assert (made.rival, table().rival, table(MELORA).rival) == ("its LoRA", "LoRA", None)


@pytest.mark.parametrize(
    ("rows", "keys", "message"),
    [
        (
            [without(MELORA, "over") | {"ovr": "method.n"}],
            {},
            "rows.0.ovr is unknown: did you mean over? There are label, sett",
        ),
        (
            [LORA],
            {"averag": None},
            "averag is unknown: did you mean average? There are title, tasks, rows, paper, number, ",
        ),
        ([LORA], {"experiment": "x"}, "experiment is unknown: did you mean "),
        (
            [LORA, without(MELORA, "over")],
            {},
            "rows.1.settings has a list of values for method.n: it must be for the key that",
        ),
        (
            [LORA | {"over": "method.n"}],
            {},
            "rows.0.settings has a list of values for no key: it must be for the key that over",
        ),
        (
            [LORA | {"settings": {"method.n": 2}}],
            {},
            "rows.0.settings.method is missing: name an option of configs/method",
        ),
        ([without(LORA, "settings")], {}, "rows.0.settings is missing"),
        (
            [LORA | {"published": {"singel": "r=8"}}],
            {},
            "rows.0.published.singel is unknown: did you mean single? There are ",
        ),
        (["LoRA"], {}, "rows.0.LoRA must be a mapping with the keys label, settings, over, "),
        ([LORA], {"rows": "LoRA"}, "rows=LoRA must be a list"),
        ([LORA], {"rows": []}, "rows and tasks must not be empty"),
        ([LORA], {"number": 2, "paper": "melora"}, "number=2 must be a text or null"),
        ([LORA], {"paper": "melora"}, "paper and number must be given together, or neither"),
        ([LORA, LORA], {}, "the label 'LoRA' must be of one row, not of several"),
        ([LORA | {"reference": "x"}], {}, "reference 'x' must be the label of a row"),
        ([LORA], {"sweeps": [["method.n"]]}, "sweeps must be pairs of settings"),
        ([LORA], {"speed": "yes"}, "speed=yes must be true or false"),
    ],
)
def test_a_slip_is_refused_in_one_line_that_names_the_file(rows, keys, message):
    with pytest.raises(ValueError, match=re.escape(f"{FILE}: {message}")) as caught:
        table(*rows, **keys)
    assert "\n" not in str(caught.value)


def test_a_file_without_a_table_is_refused():
    with pytest.raises(ValueError, match=re.escape(f"{FILE}: None must be a mapping with the keys title, tasks, rows")):
        Table.of(None, FILE, experiment="mine")


@pytest.mark.parametrize("name", sorted(options("table")))
def test_every_committed_table_keeps_to_the_schema(name):
    assert load_table(name).experiment == name


def test_every_key_is_documented():
    for cls in (Table, Row):
        assert documented(cls).keys() == cls.__dataclass_fields__.keys()
        assert all(text[0].isupper() and text[-1] == "." for text in documented(cls).values())


def test_the_committed_page_is_what_make_docs_writes():
    assert (ROOT / "docs" / "tables.md").read_text() == tables_page.document()


def test_the_example_of_the_page_is_a_table():
    """Of eight points, as the page says."""
    content = yaml.safe_load(tables_page.EXAMPLE)
    made = Table.of(content["table"], FILE, experiment=content["experiment"])
    assert len(jobs(made, [])) == 8 and "2 tasks x (1 + 3) = 8 points of 3 seeds" in tables_page.document()
    assert len(content["seeds"]) == 3
