"""Figures from records made by hand: what is drawn is what the records say, and the same records give the same files."""

import pytest
from synthetic import record

from melora_bench.figures import against_parameters, curves, draw, spectrum, sweep, to_lora
from melora_bench.tables import assemble


def saved(folder, *found):
    for each in found:
        each.save(folder)
    return str(folder)


def lora_and_mplora(gain: float = 0.01) -> list:
    """Two tasks, three seeds: MPLoRA at n = 2, 4, 8 is `gain`, 2 `gain` and 3 `gain` above LoRA at every seed."""
    found = []
    for task in ("mrpc", "rte"):
        for seed in range(3):
            top = 0.80 + 0.01 * seed
            found.append(record(task=task, seed=seed, curve=(0.7, top)))
            found += [record(method="mplora", n=n, task=task, seed=seed, curve=(0.7, top + (k + 1) * gain))
                      for k, n in enumerate((2, 4, 8))]  # fmt: skip
    return found


def mine(it, backbone="roberta_base") -> dict:
    return {(number, task): runs for (name, number, task), runs in it.cells.items() if name == backbone}


def test_curves_show_mean_and_spread_by_epoch(tmp_path):
    it = assemble("mplora_table2", saved(tmp_path, *lora_and_mplora()))
    figure = curves(it.table, mine(it), "title")
    axes = figure.axes[0]
    assert [axes.get_title() for axes in figure.axes] == ["mrpc", "rte"]
    lines = {line.get_label(): line for line in axes.lines}
    assert lines["LoRA r=8"].get_xdata().tolist() == [1, 2]
    assert lines["LoRA r=8"].get_ydata() == pytest.approx([70, 81])
    assert lines["MPLoRA r=8"].get_ydata() == pytest.approx([70, 83])
    band = axes.collections[list(lines).index("LoRA r=8")].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(70) and band[:, 1].max() == pytest.approx(82)


def test_parameters_show_each_rows_best(tmp_path):
    it = assemble("mplora_table2", saved(tmp_path, *lora_and_mplora()))
    axes = against_parameters(it.table, it.rows, "title").axes[0]
    heights = {bar.get_label(): bar.lines[0].get_ydata()[0] for bar in axes.containers}
    assert heights == pytest.approx({"LoRA r=8": 81, "MPLoRA r=8, best n": 84, "MPLoRA r=8, mean over n": 83})
    assert axes.get_xscale() == "log" and axes.get_xlim() == (294912 / 2, 294912 * 2)


def test_differences_are_paired_by_seed(tmp_path):
    """The same gain at every seed has no spread, however far the seeds are apart."""
    it = assemble("mplora_table2", saved(tmp_path, *lora_and_mplora()))
    found = {label: (mean, low, high, tasks) for label, mean, low, high, tasks in to_lora(it.table, it.rows)}
    assert found.keys() == {"MPLoRA r=8, best n", "MPLoRA r=8, mean over n"}
    mean, low, high, tasks = found["MPLoRA r=8, best n"]
    assert (mean, low, high) == pytest.approx((3, 3, 3)) and tasks == "mrpc, rte"


def test_a_sweep_shows_ours_and_the_published_points(tmp_path):
    """Table 3: the mean over n against lambda; the published average where it is printed."""
    found = [
        record(
            method="mplora", n=n, task=task, experiment="mplora_table3", curve=(top,), own={"penalty_weight": weight}
        )
        for weight, top in ((0, 0.8), (0.1, 0.9))
        for n in (2, 4, 8)
        for task in ("mrpc", "cola", "stsb")
    ]
    it = assemble("mplora_table3", saved(tmp_path, *found))
    figure = sweep(it.table, mine(it), it.rows, "title", *it.table["sweeps"][0])
    average = next(axes for axes in figure.axes if axes.get_title().startswith("average"))
    ours = next(line for line in average.lines if line.get_label() == "ours")
    assert dict(zip(ours.get_xdata(), ours.get_ydata(), strict=True)) == pytest.approx({0.0: 80, 0.1: 90})
    printed = {line.get_xdata()[0]: line.get_ydata()[0] for line in average.lines if line.get_label() == "published"}
    assert printed[0.1] == 77.00 and printed[10.0] == 75.82 and len(printed) == 11


def test_a_spectrum_counts_by_layer_and_module(tmp_path):
    layers = [f"roberta.encoder.layer.{i}.attention.self.{module}" for i in range(2) for module in ("query", "value")]
    found = []
    for seed in range(2):
        one = record(seed=seed, experiment="melora_fig3", recipe="melora/mrpc")
        counts = dict(zip(layers, (8, 6, 4 + seed, 2), strict=True))
        one.epochs[-1]["report"]["singular_values_above_0.1"] = counts
        found.append(one)
    it = assemble("melora_fig3", saved(tmp_path, *found))
    query, value = spectrum(it.table, mine(it), "title").axes
    assert (query.get_title(), value.get_title()) == ("mrpc: query", "mrpc: value")
    assert query.lines[0].get_ydata().tolist() == [8, 4.5] and value.lines[0].get_ydata().tolist() == [6, 2]


def test_the_same_records_give_the_same_files(tmp_path):
    results = saved(tmp_path, *lora_and_mplora())
    first = {path: path.read_bytes() for path in draw("mplora_table2", results)}
    names = [f"mplora_table2_roberta_base_{kind}" for kind in ("curves", "differences", "parameters")]
    assert sorted(path.name for path in first) == [f"{name}.{end}" for name in names for end in ("png", "svg")]
    assert first == {path: path.read_bytes() for path in draw("mplora_table2", results)}


def test_no_records_no_figures(tmp_path):
    assert draw("mplora_table2", str(tmp_path)) == []
