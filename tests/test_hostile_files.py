"""Records, PEFT folders and data files that somebody made to do harm: the right value, or a ValueError of one line that
names the file; nothing runs, hangs, fills the memory or is written elsewhere."""

import base64
import copy
import dataclasses
import gzip
import html
import json
import math
import os
import re
import runpy
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import peft
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from instruct_fakes import BENCHMARKS, benchmark, write_hub, write_original
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file
from synthetic import record
from torch import nn

from melora_bench.adapters.peft_format import _by_module, load_peft
from melora_bench.external import reading
from melora_bench.files import ROOT, canonical_json, sha256_json
from melora_bench.grids.tables import load_table
from melora_bench.methods.lora import LoRALayer
from melora_bench.records import records
from melora_bench.records.identity import config_hash
from melora_bench.results import figures, report, tables
from melora_bench.tasks import instruct
from melora_bench.tasks.rows import load_rows
from melora_bench.tasks.sources import LocalData

RECORD = next((ROOT / "results" / "runs" / "mplora_table2").glob("mrpc/lora-*.json"))
TEXT = "a|b`c`<script>alert(1)</script><!--[x](http://e)*\\d~^$_&%#{}\"'"
RANDOM = {
    "derandomize": True,
    "deadline": None,
    "database": None,
    "phases": [Phase.generate],
    "suppress_health_check": list(HealthCheck),
}


def refusal(call, *arguments) -> str:
    """The line with which a call is refused."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (what it says is compared by the caller)
        call(*arguments)
    line = str(caught.value)
    assert line.isprintable() and len(line) < 1000, line
    return line


# ---- records


def sealed(content: dict, folder: Path) -> Path:
    """A file with these contents, under digests that are right."""
    content = content | {"config_hash": config_hash(content["config"])}
    text = json.dumps(content | {"digest": sha256_json({key: content[key] for key in content if key != "digest"})})
    path = folder / "runs" / "mplora_table2" / "mrpc" / RECORD.name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def real(*trail: str | int, value: object) -> dict:
    """A committed record in which one value is another."""
    content = json.loads(RECORD.read_text())
    inner = content
    for key in trail[:-1]:
        inner = inner[key]
    inner[trail[-1]] = value
    return content


def test_every_committed_record_loads():
    folders = sorted((ROOT / "results" / "runs").iterdir())
    found = [one for folder in folders for one in records.load_all(ROOT / "results", folder.name)]
    assert len(found) == len(list((ROOT / "results" / "runs").rglob("*.json"))) > 50


def test_the_shape_of_a_record_covers_its_keys():
    assert records.SHAPE.keys() == records.KEYS


@pytest.mark.parametrize(
    ("trail", "value", "message"),
    [
        (
            ("run_id",),
            f"mplora_table2/mrpc/../../{RECORD.stem}",
            r"run_id is '.*', not names of letters, digits, _, - and \.",
        ),
        (("choices", "backbone"), "../../evil", r"choices\.backbone is '\.\./\.\./evil', not a name"),
        (("choices", "backbone"), "..", r"choices\.backbone is '\.\.', not a name"),
        (("choices", "method"), "lora$", r"choices\.method is 'lora\$', not a name"),
        (("choices", "recipe"), "mplora/../x", r"choices\.recipe is 'mplora/\.\./x', not names"),
        (("choices", "task"), None, r"choices\.task is None, not a name"),
        (("metric",), "=cmd", r"metric is '=cmd', not a name"),
        (("seed",), -1, r"seed is -1, not a whole number from 0 on"),
        (("seed",), True, r"seed is True, not a whole number"),
        (("packed_with",), [0, "1"], r"packed_with\.1 is '1', not a whole number"),
        (("versions",), [1], r"versions is \[1\], not an object"),
        (("params", "adapter"), 1.5, r"params\.adapter is 1\.5, not a whole number"),
        (("params", "adapter"), 2**200, r"params\.adapter is \d+\.\.\.\d+, not a whole number"),
        (("epochs",), [], r"epochs is empty"),
        (("data", "train", "sha256"), [], r"data\.train\.sha256 is empty"),
        (("epochs",), {}, r"epochs is \{\}, not a list"),
        (("epochs", 0), 3, r"epochs\.0 is 3, not an object"),
        (("epochs", 0, "metrics", "accuracy"), "0.9", r"epochs\.0\.metrics\.accuracy is '0\.9', not a number"),
        (("epochs", 0, "metrics", "accuracy"), 1e300, r"epochs\.0\.metrics\.accuracy is 1e\+300, not a number"),
        (("epochs", 0, "metrics"), {"\ue000": None}, r"epochs\.0\.metrics\.'\\ue000' is None, not a number"),
        (("epochs", 0, "metrics"), {}, r"an epoch lacks accuracy"),
        (
            ("epochs", 0, "halves"),
            [{"accuracy": 1.0}],
            r"an epoch lacks accuracy, on the whole set or on one of two halves",
        ),
        (("epochs", 0, "report"), {"distinct_paths": "1"}, r"report\.distinct_paths is '1', not a whole number"),
        (("data", "train"), {"rows": 1, "sha256": ["a"], "label": 3}, r"data\.train\.label is 3, not a text"),
        (("env", "device"), 3, r"env\.device is 3, not a text"),
        (("config", "backbone", "seen"), [3], r"config\.backbone\.seen\.0 is 3, not a text"),
        (("git", "dirty"), "no", r"git\.dirty is 'no', not true or false"),
        (("wall_seconds",), None, r"wall_seconds is None, not a number"),
        (("env", "device"), "a\nGPU", r"has control characters in a text"),
        (("env", "a\0b"), "GPU", r"has control characters in a text"),
        (("model", "name"), "\x1b[2J", r"has control characters in a text"),
        (("model", "name"), "a\u2028b", r"has control characters in a text"),
        (("config", "method", "note"), "\x1b[2J", r"has control characters in a text"),
    ],
    ids=str,
)
def test_a_sealed_record_of_values_that_cannot_be(trail, value, message, tmp_path):
    path = sealed(real(*trail, value=value), tmp_path)
    line = refusal(records.load, path)
    assert line.startswith(f"{path} ") and re.search(message, line), line
    assert line.endswith("; restore it from version control, or delete it and run that point again")


@pytest.mark.parametrize(
    "text",
    [
        "NaN",
        "Infinity",
        "-Infinity",
        "1e999",
        "9" * 5000,
        "[" * 100_000,
        '{"a":' * 100_000,
    ],
    ids=lambda text: text[:9],
)
@pytest.mark.parametrize("key", ["config", "epochs", "wall_seconds"])
def test_numbers_and_nesting_that_json_cannot_hold(key, text, tmp_path):
    """Wherever they stand: what `json` reads beyond the standard is refused."""
    content = json.loads(RECORD.read_text())
    path = sealed(content, tmp_path)
    inner = {"config": {**content["config"], "x": "MARK"}, "epochs": [{**content["epochs"][0], "x": "MARK"}]}
    content[key] = inner.get(key, "MARK")
    path.write_text(json.dumps(content).replace('"MARK"', text))
    assert refusal(records.load, path).startswith(f"{path} is not valid JSON (")


def test_half_a_character(tmp_path):
    """No digest of it exists, as UTF-8 has none."""
    path = sealed(json.loads(RECORD.read_text()), tmp_path)
    path.write_text(path.read_text().replace('"minilm"', '"\\ud800"', 1))
    assert refusal(records.load, path).startswith(f"{path} has control characters in a text; ")


def test_a_folder_in_a_records_place(tmp_path):
    path = tmp_path / "runs" / "mine" / "mrpc" / "lora-0-s0.json"
    path.mkdir(parents=True)
    assert refusal(records.load_all, tmp_path, "mine").startswith(f"{path} is not valid JSON ([Errno 21]")


def test_a_template_in_a_config_may_have_line_ends(tmp_path):
    content = real("config", "template", value="Below is\n\n### Input:\n\t{input}")
    assert records.load(sealed(content, tmp_path)).config["template"] == "Below is\n\n### Input:\n\t{input}"


# ---- texts where they are written


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """A results folder whose records hold TEXT wherever a text is free, and a table whose texts are TEXT too."""
    for number in range(3):
        one = record(seed=number, curve=(0.5, 0.8 + 0.01 * number), lr=TEXT)
        one.env |= {"device": TEXT, "precision": TEXT}
        one.model["sha256"] = TEXT
        one.git["commit"] = TEXT
        one.data["train"] |= {"label": TEXT, "file": TEXT}
        one.save(tmp_path)
    table = load_table("mplora_table2")
    rows = [dataclasses.replace(table.rows[0], label=f"@{TEXT}"), *table.rows[1:]]
    table = dataclasses.replace(table, title=f"{TEXT} $x\nb", average="=1+1", rows=rows)
    monkeypatch.setattr("melora_bench.results.assembled.load_table", lambda name: table)
    return tmp_path


def test_markdown(hostile):
    lines = tables.regenerate("mplora_table2", str(hostile))[1].read_text().splitlines()
    shown = r"a\|b\`c\`\<script>alert(1)\</script>\<!--\[x\](http://e)\*\\d~^$_&%#{}" + "\"'"
    assert lines[0] == f"# {shown} $x b"
    assert r"- commits: a\|b\`c\`\<scr" in lines  # its first 10 characters
    assert f"- devices: {shown}, precision {shown}" in lines
    rows = [line for line in lines if line.startswith("| @")]
    assert len(rows) == 3 and all(line.startswith(f"| @{shown} | 294,912 | 81.00") for line in rows)
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows} == {10}  # 9 columns


def test_latex(hostile):
    lines = tables.regenerate("mplora_table2", str(hostile))[2].read_text().splitlines()
    assert lines[0] == f"% {TEXT} $x b. Needs \\usepackage{{booktabs}}."
    shown = r"a\textbar{}b`c`\textless{}script\textgreater{}alert(1)\textless{}/script\textgreater{}\textless{}!--{[}x](http://e)"
    shown += r"{*}\textbackslash{}d\textasciitilde{}\textasciicircum{}\$\_\&\%\#\{\}" + "\"'"
    assert sum(line.startswith(f"@{shown} & 294,912 & 81.00 $\\pm$ 1.00 & ") for line in lines) == 1
    inside = slice(lines.index(r"\midrule") + 1, lines.index(r"\bottomrule"))
    assert all(line.endswith(r" \\") and line.count(" & ") == 8 for line in lines[inside])
    assert all(line[0] == "%" for line in lines[lines.index(r"\end{tabular}") + 1 :])


def test_csv(hostile):
    path = tables.regenerate("mplora_table2", str(hostile))[0]
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    assert frame["row"][0] == f"'@{TEXT}" and frame["task"][6] == "'=1+1"
    assert not frame.map(lambda cell: cell[:1] in "=@" and cell != "").any(axis=None)


@pytest.mark.parametrize("text", ["+0.73", "-0.35", "-0.50 to 1.20", "+1", "", "a=b", "12", "0.50 (-1.00 to 2.00)"])
def test_numbers_and_plain_texts_of_a_csv_stay(text):
    assert tables._cell(text) == text


@pytest.mark.parametrize(
    "text", ["=1+1", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "-cmd|'/C calc'!A0", "- 1", "-1 to =2"]
)
def test_what_a_spreadsheet_would_run_is_marked_as_text(text):
    assert tables._cell(text) == f"'{text}"


def test_figures(hostile):
    """A dollar sign is no formula, and files stay in their folder."""
    before = {path for path in hostile.rglob("*") if path.is_file()}
    paths = figures.draw("mplora_table2", str(hostile))
    assert {path for path in hostile.rglob("*") if path.is_file()} - before == set(paths) and len(paths) == 4
    assert {path.parent for path in paths} == {hostile / "figures"}
    drawn = next(path for path in paths if path.name.endswith("parameters.svg")).read_text()
    assert f">@{html.escape(TEXT, quote=False)}<" in drawn


def test_report(hostile):
    """Texts stay texts, and a drawing from elsewhere is an image, whatever its name: no script of its own runs."""
    evil = '<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"><script>alert(2)</script></svg>'
    (hostile / "figures").mkdir()
    (hostile / "figures" / 'mplora_table2_roberta_base_\\d"><script>.svg').write_text(evil)
    page = report.write(str(hostile)).read_text()
    assert len(re.findall("<script", page)) == 2 and "alert(2)" not in page and "onload" not in page
    data = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page)[1])
    assert [run["env"]["device"] for run in data] == [TEXT] * 3 and data[0]["config"]["lr"] == TEXT
    [(name, image)] = re.findall(r'<img alt="([^"]*)" src="data:image/svg\+xml;base64,([^"]+)">', page)
    assert base64.b64decode(image).decode() == evil
    assert html.unescape(name) == 'mplora_table2_roberta_base_\\d"><script>'


def test_an_experiment_that_is_no_name(tmp_path):
    line = refusal(tables.regenerate, "mplora_table2", str(tmp_path), "../x")
    assert line.startswith("experiment '../x' must be a name of letters, digits, _, - and .") and not any(
        tmp_path.iterdir()
    )
    assert refusal(load_table, "../recipe/quick").startswith("table '../recipe/quick' is unknown: there are audit, ")


# ---- PEFT


def layers() -> dict[str, LoRALayer]:
    names = ("encoder.layer.0.query", "encoder.layer.1.query", "encoder.layer.1.dense")
    made = {
        name: LoRALayer(nn.Linear(6, 4), 1, r=2, alpha=2, lora_dropout=0.0, init="kaiming_uniform") for name in names
    }
    for layer in made.values():
        torch.nn.init.zeros_(layer.A)
    return made


def adapter(folder: Path, change: dict, **tensors: torch.Tensor) -> Path:
    """A PEFT folder for `layers`, all factors one, its adapter_config.json changed."""
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["query", "dense"]} | change
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    shapes = {"A": (2, 6), "B": (4, 2)}
    made = {f"{name}.lora_{part}.weight": torch.ones(shapes[part]) for name in layers() for part in "AB"} | tensors
    save_file({f"base_model.model.{name}": value for name, value in made.items()}, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("change", "scales"),
    [
        ({}, [2, 2, 2]),
        ({"alpha_pattern": {"layer.1.query": 3, "query": 7}}, [3.5, 1.5, 2]),
        ({"alpha_pattern": {"^encoder.layer.0.query": 1, "^layer.1.query": 9, "uery": 9}}, [0.5, 2, 2]),
        ({"alpha_pattern": None, "rank_pattern": {"dense": 2}, "use_rslora": True}, [4 / math.sqrt(2)] * 3),
    ],
)
def test_a_pattern_means_names_and_their_endings(change, scales, tmp_path):
    made = layers()
    load_peft(made, "head", 0, adapter(tmp_path, change))
    found = [layer.delta_weight()[0] for layer in made.values()]
    assert all(
        torch.allclose(delta, torch.full((4, 6), 2.0 * scale)) for delta, scale in zip(found, scales, strict=True)
    )


@settings(max_examples=60, **RANDOM)
@given(st.data())
def test_names_and_endings_are_matched_as_stock_peft_does(data):
    """The keys of real files: whole names and endings of them, some of other modules, some anchored."""
    parts = st.sampled_from(["model", "layers", "0", "11", "self_attn", "q_proj", "v-proj", "fc1"])
    names = data.draw(st.lists(st.lists(parts, min_size=1, max_size=5).map(".".join), min_size=1, unique=True))
    endings = [".".join(name.split(".")[-data.draw(st.integers(1, 5)) :]) for name in names]
    marks = data.draw(st.lists(st.sampled_from(["", "^"]), min_size=len(endings), max_size=len(endings)))
    pattern = {mark + ending: number for number, (mark, ending) in enumerate(zip(marks, endings, strict=True), 1)}
    found = _by_module({"lora_alpha": 0, "alpha_pattern": pattern}, "lora_alpha", "alpha_pattern", names)
    assert found == {name: pattern.get(get_pattern_key(list(pattern), name), 0) for name in names}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha_pattern": {"(e+)+$": 3}}, r"has alpha_pattern of \(e\+\)\+\$, a regular expression: name each module"),
        ({"rank_pattern": {"(.*)*x": 3}}, r"has rank_pattern of \(\.\*\)\*x, a regular expression"),
        ({"alpha_pattern": ["query"]}, r"has alpha_pattern=\['query'\], which is no object of numbers"),
        ({"alpha_pattern": {"query": "3"}}, r"has query=3, which is no number"),
        ({"alpha_pattern": {"query": math.nan}}, r"has query=nan, which is no number"),
        ({"alpha_pattern": {"a\nb": 3}}, r"has alpha_pattern of 'a\\nb', a regular expression"),
        ({"lora_alpha": math.inf}, r"has lora_alpha=inf, which is no number"),
        ({"lora_alpha": True}, r"has lora_alpha=True, which is no number"),
        ({"lora_alpha": 10**400}, r"has lora_alpha=10+\.\.\.0+, which is no number"),
        ({"r": "8"}, r"has r=8, which is no number"),
        ({"r": 0}, r"has rank 0 for encoder\.layer\.0\.query, but factors of shapes \(4, 2\) and \(2, 6\)"),
        ({"r": 4}, r"has rank 4 for encoder\.layer\.0\.query, but factors of shapes \(4, 2\) and \(2, 6\)"),
        ({"use_rslora": "no"}, r"has use_rslora=no, which is neither true nor false"),
        ({"peft_type": "\x1b[2J"}, r"is '\\x1b\[2J', not LORA"),
        ({"peft_type": [[[[[[[[1]]]]]]]]}, r"is \[{6,7}\.\.\.\]{6,7}, not LORA"),
        (
            {"init_lora_weights": ["pissa"]},
            r"has init_lora_weights=\['pissa'\], for which PEFT changes the base weights",
        ),
        ({"r": 2, "lora_alpha": 1e38, "use_rslora": False}, None),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_adapter_config_that_cannot_be(change, message, tmp_path):
    made, started = layers(), time.monotonic()
    if message is None:
        load_peft(made, "head", 0, adapter(tmp_path, change))
        return
    line = refusal(load_peft, made, "head", 0, adapter(tmp_path, change))
    assert line.startswith(f"{tmp_path} ") and re.search(message, line), line
    assert time.monotonic() - started < 5 and not any(layer.B.any() for layer in made.values())


def test_factors_that_cannot_be(tmp_path):
    name = "encoder.layer.0.query.lora_A.weight"
    wrong = {
        r"factors of shapes \(4, 2\) and \(\)": torch.tensor(1.0),
        r"has factors for encoder\.layer\.0\.query that are not finite": torch.full((2, 6), torch.nan),
    }
    for message, tensor in wrong.items():
        line = refusal(load_peft, layers(), "head", 0, adapter(tmp_path, {}, **{name: tensor}))
        assert re.search(message, line), line
    line = refusal(load_peft, layers(), "head", 0, adapter(tmp_path, {}, **{"a\nb": torch.ones(1)}))
    assert r"holds 'base_model.model.a\nb', which is neither a factor" in line


def test_an_adapter_config_that_is_nested_a_folder_or_marked(tmp_path):
    folder = adapter(tmp_path, {})
    path = folder / "adapter_config.json"
    whole = path.read_text()
    path.write_text("[" * 100_000)
    assert "has an adapter_config.json that is not JSON (" in refusal(load_peft, layers(), "head", 0, folder)
    path.write_text("\ufeff" + whole)
    made = layers()
    load_peft(made, "head", 0, folder)
    assert torch.allclose(made["encoder.layer.1.dense"].delta_weight()[0], torch.full((4, 6), 4.0))
    path.unlink()
    path.mkdir()
    assert "has an adapter_config.json that is not JSON (" in refusal(load_peft, layers(), "head", 0, folder)


def test_the_stock_library_takes_the_keys_that_we_refuse_for_regular_expressions():
    """Else they would be refused for nothing."""
    assert get_pattern_key(["q.*y"], "encoder.query") == "q.*y" and peft.__version__


# ---- data files


ORIGINALS = {
    "bbh": "bbh/bbh/answers.json",
    "drop": "drop/drop_v0_dev.jsonl.gz",
    "humaneval": "humaneval/HumanEval.jsonl.gz",
    "mmlu": "mmlu/test/colours_test.csv",
}
NESTED = b"[" * 100_000 + b"]" * 100_000


def source(root: Path) -> LocalData:
    return LocalData(root=str(root), splits={})


def glue(root: Path, ending: str, content: bytes) -> Path:
    path = root / "mrpc" / f"train.{ending}"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def glue_rows(root: Path) -> list:
    found = load_rows(source(root), "mrpc", "train", ["sentence"], None, optional=False)
    return list(zip(*found.texts, found.labels.tolist(), strict=True))


@pytest.mark.parametrize("name", BENCHMARKS)
@pytest.mark.parametrize(
    "content",
    [NESTED, b"\0" * 40, b"\xff" * 40, b'{"a": 9' + b"9" * 9000 + b"}", b'"\\ud800"'],
    ids=["nested", "NUL", "no text", "a long number", "half a character"],
)
def test_benchmark_files(name, content, tmp_path):
    path = write_original(tmp_path) / ORIGINALS[name]
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    assert refusal(benchmark(name).read, tmp_path).startswith(f"{path}")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_folders_in_place_of_benchmark_files(name, tmp_path):
    path = write_original(tmp_path / "original") / ORIGINALS[name]
    path.unlink()
    path.mkdir()
    assert str(path.parent) in refusal(benchmark(name).read, tmp_path / "original")
    path = next((write_hub(tmp_path / "hub") / name).rglob("[tv]*.parquet"))
    path.unlink()
    path.mkdir()
    assert refusal(benchmark(name).read, tmp_path / "hub").startswith(f"{path} cannot be read as parquet (")


@pytest.mark.parametrize("name", ["drop", "humaneval"])
def test_a_file_that_unpacks_to_more_than_the_limit(name, tmp_path, monkeypatch):
    """A kilobyte of .gz for each megabyte: what is beyond the limit is never unpacked."""
    monkeypatch.setattr(reading, "UNPACKED", 2**20)
    path = write_original(tmp_path) / ORIGINALS[name]
    assert benchmark(name).read(tmp_path).subjects  # the real one is far below
    path.write_bytes(gzip.compress(b"0" * 2**26))
    line = refusal(benchmark(name).read, tmp_path)
    assert line == f"{path} cannot be read as jsonl (it unpacks to more than 1 MiB): is the file complete?"
    bomb = tmp_path / "rows.json.gz"
    bomb.write_bytes(gzip.compress(b" " * 2**26))
    assert refusal(instruct.read, bomb).startswith(f"{bomb} cannot be read as json (it unpacks to more than 1 MiB)")


def test_a_gz_is_read_up_to_the_limit_and_no_further(tmp_path):
    assert reading.UNPACKED == 2**30
    path = tmp_path / "rows.json.gz"
    path.write_bytes(gzip.compress(b"[1]"))
    assert reading.unpacked(path) == b"[1]"


def test_a_byte_order_mark_changes_nothing(tmp_path):
    """In every text file that is read."""
    mark = "\ufeff".encode()
    root = write_original(tmp_path / "a")
    marked = write_original(tmp_path / "b")
    for path in (path for path in marked.rglob("*") if path.is_file()):
        content = path.read_bytes()
        path.write_bytes(gzip.compress(mark + gzip.decompress(content)) if path.suffix == ".gz" else mark + content)
    for name in BENCHMARKS:
        assert benchmark(name).read(marked).subjects == benchmark(name).read(root).subjects
    for ending, content in (("jsonl", b'{"sentence": "good", "label": 1}\n'), ("csv", b"sentence,label\ngood,1\n")):
        glue(tmp_path, ending, mark + content)
        assert glue_rows(tmp_path) == [("good", 1.0)]
        (tmp_path / "mrpc" / f"train.{ending}").unlink()
    row = {"instruction": "Say it.", "input": "", "output": "it"}
    for name, content in (("rows.json", [row]), ("rows.jsonl", row)):
        (tmp_path / name).write_bytes(mark + json.dumps(content).encode())
        assert instruct.read(tmp_path / name) == [row]
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(mark + json.dumps(content).encode()))
        assert instruct.read(tmp_path / f"{name}.gz") == [row]


@pytest.mark.parametrize(
    ("ending", "content", "message"),
    [
        ("jsonl", NESTED, r"cannot be read as jsonl \(in line 1: maximum recursion depth"),
        (
            "jsonl",
            b'{"sentence": "a", "label": ' + b"9" * 9000 + b"}",
            r"cannot be read as jsonl \(in line 1: Exceeds the limit",
        ),
        ("jsonl", b'{"sentence": "a", "label": 1' + b"0" * 400 + b"}", r"cannot be read as jsonl \(int too large"),
        ("jsonl", b'{"sentence": "good", "label": [1]}', r"label is \[1\] in row 0, not a number"),
        ("jsonl", b'{"sentence": "good", "label": {"a": 1}}', r"label is \{'a': 1\} in row 0, not a number"),
        ("jsonl", b'{"sentence": "\\ud800", "label": 1}', r"sentence is '\\ud800' in row 0, not a text"),
        ("jsonl", b'[1]\n{"sentence": "good", "label": 1}', r"must have one object of columns per line, not \[1\]"),
        ("jsonl", b'{"sentence": "good", "label": 1}\nnull', r"must have one object of columns per line, not None"),
        ("jsonl", b'{"a\\nb": 1}', r"has no column 'sentence'; it has 'a\\nb'"),
        ("jsonl", b"\0\0", r"cannot be read as jsonl \("),
        (
            "csv",
            b"sentence,label\ngood, really,1\nbad, really,0\n",
            r"rows have more cells than the header: texts with a comma",
        ),
        ("csv", b"\xff\xfe\0", r"cannot be read as csv \("),
        ("csv", b'sentence,label\n"good', r"cannot be read as csv \("),
        ("parquet", b"PAR1" + b"\0" * 40 + b"PAR1", r"cannot be read as parquet \("),
    ],
    ids=lambda value: str(value)[:24],
)
def test_glue_files(ending, content, message, tmp_path):
    path = glue(tmp_path, ending, content)
    line = refusal(glue_rows, tmp_path)
    assert line.startswith(str(path)) and re.search(message, line), line


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"sentence": [[1]], "label": [1]}, r"sentence is .* in row 0, not a text"),
        ({"sentence": ["a"], "label": [[1]]}, r"label is .* in row 0, not a number"),
        ({"sentence": ["a"], "label": [{"a": 1}]}, r"label is \{'a': 1\} in row 0, not a number"),
        ({"sentence": ["a"], "label": [b"x"]}, r"label is b'x' in row 0, not a number"),
        ({"sentence": [b"\xff"], "label": [1]}, r"sentence is b'\\xff' in row 0, not a text"),
    ],
)
def test_parquet_columns_of_another_type(columns, message, tmp_path):
    path = glue(tmp_path, "parquet", b"")
    pq.write_table(pa.table(columns), path)
    assert re.search(message, refusal(glue_rows, tmp_path))


def test_parquet_with_a_column_twice(tmp_path):
    path = glue(tmp_path, "parquet", b"")
    arrays = [pa.array(["a"]), pa.array([1]), pa.array([0])]
    pq.write_table(pa.Table.from_arrays(arrays, ["sentence", "label", "label"]), path)
    assert refusal(glue_rows, tmp_path).startswith(str(path))


@pytest.mark.parametrize(
    "change",
    [
        {"choices": "abcd"},
        {"choices": {"a": 1}},
        {"choices": None},
        {"answer": 1.0},
        {"answer": True},
        {"answer": "B"},
        {"question": 3},
        {"subject": b"x"},
    ],
    ids=str,
)
def test_parquet_columns_of_mmlu_of_another_type(change, tmp_path):
    """Four letters are no four choices."""
    root = write_hub(tmp_path)
    row = {"question": "Q", "subject": "colours", "choices": ["a", "b", "c", "d"], "answer": 1} | change
    pq.write_table(pa.Table.from_pylist([row]), root / "mmlu/all/test-00000-of-00001.parquet")
    line = refusal(benchmark("mmlu").read, root)
    assert re.search(rf"row 0 of test: {next(iter(change))} is .*, not ", line), line


def test_a_cell_beyond_the_limit_of_csv(tmp_path):
    path = write_original(tmp_path) / ORIGINALS["mmlu"]
    path.write_text(f'"{"a" * 200_000}",a,b,c,d,B\n')
    assert refusal(benchmark("mmlu").read, tmp_path).startswith(
        f"{path} cannot be read as csv (field larger than field limit"
    )


@pytest.mark.parametrize("ending", ["json", "jsonl", "json.gz", "parquet"])
def test_instruction_files(ending, tmp_path):
    path = tmp_path / f"rows.{ending}"
    for content in (NESTED, b"\0" * 40, b"\xff" * 40):
        path.write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
        assert refusal(instruct.read, path).startswith(f"{path} cannot be read as {ending.removesuffix('.gz')} (")
    path.unlink()
    path.mkdir()
    assert refusal(instruct.read, path).startswith(f"{path} cannot be read as {ending.removesuffix('.gz')} ([Errno 21]")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_files_that_may_not_be_read(tmp_path):
    path = write_original(tmp_path) / ORIGINALS["bbh"]
    path.chmod(0)
    assert refusal(benchmark("bbh").read, tmp_path).startswith(f"{path} cannot be read as json ([Errno 13]")


# ---- scripts


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "scripts").glob("*.py")))
def test_every_script_explains_itself_and_writes_nothing(name, tmp_path, monkeypatch, capsys):
    def state() -> dict:
        places = [ROOT / "docs", ROOT / "results", ROOT / "scripts", tmp_path]
        return {
            path: path.stat().st_mtime_ns
            for place in places
            for path in place.rglob("*")
            if "__pycache__" not in str(path)
        }

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    before = state()
    try:
        runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")
        code = 0
    except SystemExit as done:
        code = done.code
    assert code in (0, None) and state() == before
    assert name in (text := capsys.readouterr().out) or "melora-bench" in text


@pytest.mark.parametrize("name", ["report", "methods", "tables", "figures", "plan", "status", "export"])
def test_an_unknown_option_is_refused(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--nonsense"])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(ROOT / "scripts" / f"{name}.py"), run_name="__main__")
    assert done.value.code in (1, 2) and "--nonsense" in capsys.readouterr().err and not any(tmp_path.iterdir())


def test_a_report_of_no_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report.py", str(tmp_path / "none")])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(ROOT / "scripts" / "report.py"), run_name="__main__")
    assert done.value.code == 1 and not any(tmp_path.iterdir())
    assert capsys.readouterr().err == f"error: {tmp_path}/none is no folder: name the results_dir of finished runs\n"


# ---- at random


VALUES = st.one_of(
    st.sampled_from(
        [
            None,
            True,
            -1,
            0,
            2**64,
            10**400,
            math.nan,
            math.inf,
            -math.inf,
            1e308,
            -0.0,
            [],
            {},
            [[[[1]]]],
            "",
            "..",
            "../../x",
            "x" * 500,
            "a\nb",
            "\0",
            "\x1b[2J",
            "\u2028",
            "\ud800",
            TEXT,
            "=1+1",
            "-1+1",
            "{\\",
            "$",
        ]
    ),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.recursive(
        st.none() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    ),
)


def places(value: object, trail: tuple = ()) -> list[tuple]:
    """Where the values of a JSON value stand."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [trail, *(place for key, inner in pairs for place in places(inner, (*trail, key)))]


@st.composite
def mutated(draw, content: dict) -> object:
    """The content with one to three values changed, removed or added."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        *trail, last = draw(st.sampled_from(places(content)[1:]))
        inner = content
        for key in trail:
            inner = inner[key]
        change = draw(st.sampled_from(["change", "change", "change", "remove", "add"]))
        if change == "remove":
            del inner[last]
        elif change == "add" and isinstance(inner, dict):
            inner[draw(st.text(max_size=9))] = copy.deepcopy(draw(VALUES))
        else:
            inner[last] = copy.deepcopy(draw(VALUES))
        if len(places(content)) < 2:
            break
    return content


def one_line(error: ValueError, path: Path) -> None:
    assert str(path) in str(error) and str(error).isprintable() and len(str(error)) < 1000, error


def files_of(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def check_record(content: object) -> None:
    """Whoever seals such a record gets it refused, or it goes through tables and report."""
    with tempfile.TemporaryDirectory() as name:
        outer, folder = Path(name), Path(name) / "a" / "b" / "results"
        path = folder / "runs" / "mplora_table2" / "mrpc" / RECORD.name
        path.parent.mkdir(parents=True)
        try:
            path = sealed(content, folder)
        except (
            TypeError,
            ValueError,
            KeyError,
            AttributeError,
            OverflowError,
        ):  # no digest: not finite, half a character, no config
            path.write_text(json.dumps(content))
        try:
            found = records.load(path)
        except ValueError as error:
            return one_line(error, path)
        assert canonical_json(json.loads(path.read_text())) == canonical_json(vars(found))
        tables.regenerate("mplora_table2", str(folder))
        page = report.write(str(folder)).read_text()
        json.loads(re.search(r'type="application/json">(.*?)</script>', page)[1], parse_constant=pytest.fail)
        assert len(re.findall("<script", page)) == 2
        written = {
            folder / "report.html",
            *(folder / "tables" / f"mplora_table2.{kind}" for kind in ("csv", "md", "tex")),
        }
        assert files_of(outer) == {path, *written}


def check_adapter(config: object) -> None:
    made = layers()
    with tempfile.TemporaryDirectory() as name:
        folder = adapter(Path(name), {})
        (folder / "adapter_config.json").write_text(json.dumps(config))
        try:
            load_peft(made, "head", 0, folder)
        except ValueError as error:
            return one_line(error, folder)
    assert all(torch.isfinite(layer.delta_weight()).all() for layer in made.values())


CONFIG = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "use_rslora": False,
    "init_lora_weights": True,
    "use_dora": False,
    "alpha_pattern": {"layer.1.query": 3, "query": 7},
    "rank_pattern": {"dense": 2},
    "target_modules": ["query"],
}
GLUE = [{"sentence": "good", "label": 1}, {"sentence": "bad", "label": 0}]


def check_rows(rows: object, raw: bytes) -> None:
    """As lines of JSON, rows of CSV and instructions: mutated values, then bytes changed somewhere."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        lines = "\n".join(map(json.dumps, rows)).encode() if isinstance(rows, list) else json.dumps(rows).encode()
        for ending, content in (
            ("jsonl", lines),
            ("jsonl", lines[:40] + raw),
            ("csv", b"sentence,label\ngood,1\n" + raw),
        ):
            path = glue(root, ending, content)
            try:
                found = glue_rows(root)
            except ValueError as error:
                one_line(error, path)
            else:
                assert all(
                    type(text) is str and type(label) is float and not math.isnan(label) for text, label in found
                )
            path.unlink()
        for ending, content in (
            ("json", json.dumps(rows).encode()),
            ("jsonl", lines),
            ("json.gz", raw),
            ("parquet", raw),
        ):
            path = root / f"rows.{ending}"
            path.write_bytes(content)
            try:
                assert all(reading.is_text(row["output"]) for row in instruct.read(path))
            except ValueError as error:
                one_line(error, path)
        bbh = write_original(root / "original") / ORIGINALS["bbh"]
        for content in (json.dumps({"examples": rows}).encode(), raw):
            bbh.write_bytes(content)
            try:
                benchmark("bbh").read(root / "original")
            except ValueError as error:
                one_line(error, bbh.parent.parent)


CHECKS = {
    "record": (check_record, (mutated(json.loads(RECORD.read_text())),)),
    "adapter": (check_adapter, (mutated(CONFIG),)),
    "rows": (
        check_rows,
        (mutated([*GLUE, {"input": "a", "target": "b", "instruction": "c", "output": "d"}]), st.binary(max_size=60)),
    ),
}


@pytest.mark.parametrize("kind", CHECKS)
def test_at_random(kind):
    check, strategies = CHECKS[kind]
    settings(max_examples=20, **RANDOM)(given(*strategies)(check))()


@pytest.mark.slow
@pytest.mark.parametrize("kind", CHECKS)
def test_at_random_for_longer(kind):
    """Another start each time, which is printed, for `seed`."""
    check, strategies = CHECKS[kind]
    start = int.from_bytes(os.urandom(4))
    print(f"seed {start}")
    options = RANDOM | {"derandomize": False}
    seed(start)(settings(max_examples=1000, print_blob=True, **options)(given(*strategies)(check)))()
