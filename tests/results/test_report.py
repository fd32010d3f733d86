"""The report: one file that needs no network, in which a browser finds no error and sorting, filtering and a run work."""

import dataclasses
import html
import json
import re
import shutil
import subprocess

import pytest
from synthetic import record

from melora_bench.results.figures import draw
from melora_bench.results.report import write

PROBE = """<script>
window.addEventListener("load", () => {
  const cells = (table, column) => [...table.tBodies[0].rows].map(row => row.cells[column].textContent);
  const runs = document.getElementById("runs"), head = runs.tHead.rows[0].cells;
  const seen = { errors: window.errors, unsorted: cells(runs, 5) };
  head[5].click(); seen.falling = cells(runs, 5);
  head[5].click(); seen.rising = cells(runs, 5);
  seen.best = Object.fromEntries([...runs.tBodies[0].rows].map(row => [row.cells[1].textContent, row.cells[5].textContent]));
  const visible = table => [...table.tBodies[0].rows].filter(row => !row.hidden).map(row => row.cells[0].textContent);
  const filter = (table, words) => {
    const line = table.parentElement.previousElementSibling, input = line.querySelector("input");
    input.value = words; input.dispatchEvent(new Event("input"));
    return [visible(table), line.querySelector("span").textContent];
  };
  [seen.filtered, seen.count] = filter(runs, "mplora- s1");
  filter(runs, "");
  const first = document.querySelector("table.sortable");
  first.tHead.rows[0].cells[2].click();
  seen.pairs = cells(first, 0);
  [seen.one] = filter(first, "best published");
  seen.drawers = [...runs.tBodies[0].rows].map(row => { row.click(); return document.getElementById("run").innerText; });
  const probe = document.createElement("pre");
  probe.id = "probe"; probe.textContent = JSON.stringify(seen); document.body.append(probe);
});
</script>"""


@pytest.fixture
def page(tmp_path):
    """The report of six runs with figures, of one with a loss, and of one score of a trained model."""
    for seed in range(3):
        record(seed=seed, curve=(0.5, 0.8 + 0.01 * seed)).save(tmp_path)
        record(method="mplora", n=2, seed=seed, curve=(0.9, 0.7), task="rte").save(tmp_path)
    draw("mplora_table2", str(tmp_path))
    one = record(task="alpaca", curve=(2.5, 2.0, 2.25), recipe="quick")
    for entry in one.epochs:
        entry["metrics"], *entry["halves"] = (
            {"loss": each["accuracy"]} for each in (entry["metrics"], *entry["halves"])
        )
    dataclasses.replace(one, metric="loss").save(tmp_path)
    one = record(task="mmlu", curve=(0.25,), recipe="quick")
    dataclasses.replace(one, epochs=[{**one.epochs[0], "train_loss": None, "penalty": None}]).save(tmp_path)
    return write(str(tmp_path))


def test_the_page_needs_nothing_else(page):
    """No address is fetched: no script, style, image or font from elsewhere; the same records give the same page."""
    text = page.read_text()
    assert not re.search(r"(src|href)=[\"'](?!#|data:)", text.replace("http://www.w3.org", ""))
    assert "@import" not in text and "fetch(" not in text
    assert text.count("<img ") >= 2 and "LoRA r=8" in text and "87.09" in text
    assert "What we found" in text and "MPLoRA at lambda = 0 is LoRA" in text
    before = page.read_bytes()
    write(str(page.parent))
    assert page.read_bytes() == before


def test_ids_of_figures_do_not_clash(page):
    ids = re.findall(r'\bid="([^"]+)"', page.read_text())
    assert len(ids) == len(set(ids))


def test_text_cannot_break_the_page(tmp_path):
    """What looks like markup in a record stays text."""
    one = record(experiment="mplora_table2")
    one.env["device"] = "</script><b>x"
    one.save(tmp_path)
    text = write(str(tmp_path)).read_text()
    assert "</script><b>x" not in text and "\\u003c/script>" in text


def test_trials_have_tables_and_a_bad_one_stops_nothing(tmp_path, caplog):
    """Of a table that has no other records, too; a bad record of the table's own stops the report."""
    record(experiment="small_glue-epochs-1").save(tmp_path)
    bad = record(experiment="small_glue-epochs-2").save(tmp_path)
    bad.write_text("{}")
    other = record(experiment="mine").save(tmp_path)
    other.write_text("{}")
    text = write(str(tmp_path)).read_text()
    assert '<h2 id="small_glue-epochs-1">' in text and "1 runs on roberta_base, in 1 tables" in text
    assert "Left out, as they cannot be read or shown: mine, small_glue-epochs-2." in text
    assert str(tmp_path) not in text and f"{bad} has schema None" in caplog.text
    record(experiment="small_glue").save(tmp_path).write_text("{}")
    with pytest.raises(ValueError, match="has schema None"):
        write(str(tmp_path))


@pytest.mark.slow
def test_in_a_browser(page, tmp_path):
    """Headless Chromium: no error on the console, columns sort both ways, the filter filters, a click opens a run."""
    browser = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if not browser:
        pytest.skip("needs Chromium or Chrome on the PATH")
    listen = (
        "<script>window.errors = []; console.error = window.onerror = message => window.errors.push(message);</script>"
    )
    probed = page.with_name("probed.html")
    probed.write_text(page.read_text().replace("<head>", f"<head>{listen}").replace("</body>", f"{PROBE}</body>"))
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--no-first-run",
        f"--user-data-dir={tmp_path}/profile",
        "--window-size=1200,1600",
        "--virtual-time-budget=5000",
    ]
    done = subprocess.run(
        [browser, *options, "--dump-dom", probed.as_uri()], capture_output=True, text=True, timeout=120
    )
    seen = json.loads(html.unescape(re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)[1]))
    assert seen["errors"] == []
    assert seen["falling"] == ["90.00"] * 3 + ["82.00", "81.00", "80.00", "25.00", "2.00"]
    assert seen["rising"] == ["2.00", "25.00", "80.00", "81.00", "82.00"] + ["90.00"] * 3
    assert (seen["best"]["alpaca"], seen["best"]["mmlu"]) == ("2.00", "25.00")
    assert [name[-2:] for name in seen["filtered"]] == ["s1"] and seen["count"] == " 1 of 8 lines"
    published = [i for i, name in enumerate(seen["pairs"]) if ": published" in name]
    assert len(published) > 3  # sorted, each still stands below its own
    assert all(seen["pairs"][i].startswith(f"{seen['pairs'][i - 1]}: published") for i in published)
    assert seen["one"] and all("published" in name and "best" in name for name in seen["one"])
    assert len(seen["drawers"]) == len(set(seen["drawers"])) == 8
    for text in seen["drawers"]:
        assert "penalty" in text and '"lr": ' in text and "A GPU" in text
    shot = tmp_path / "page.png"
    subprocess.run(
        [browser, *options, f"--screenshot={shot}", page.as_uri()], capture_output=True, check=True, timeout=120
    )
    assert shot.stat().st_size > 20_000
