"""Figures from records made by hand: what is drawn is what the records say, and the same records give the same
files."""

import numpy as np
import pytest
from synthetic import record

from melora_bench.results.assembled import assemble
from melora_bench.results.figures import curves, draw, parameters, spectrum, sweep
from melora_bench.results.figures.forest import Difference, differences, forest
from melora_bench.results.sections import Section


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
            found += [
                record(method="mplora", n=n, task=task, seed=seed, curve=(0.7, top + (k + 1) * gain))
                for k, n in enumerate((2, 4, 8))
            ]
    return found


def section(name: str, results: str) -> Section:
    """The table's part on the one backbone that the records have."""
    [found] = assemble(name, results).sections
    return found


def test_curves_show_mean_and_spread_by_epoch(tmp_path):
    figure = curves.figure(section("mplora_table2", saved(tmp_path, *lora_and_mplora())))
    axes = figure.axes[0]
    assert [axes.get_title() for axes in figure.axes] == ["mrpc", "rte"]
    lines = {line.get_label(): line for line in axes.lines}
    assert lines["LoRA r=8"].get_xdata().tolist() == [1, 2]
    assert lines["LoRA r=8"].get_ydata() == pytest.approx([70, 81])
    assert lines["MPLoRA r=8"].get_ydata() == pytest.approx([70, 83])
    band = axes.collections[list(lines).index("LoRA r=8")].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(70) and band[:, 1].max() == pytest.approx(82)


def test_parameters_show_each_rows_best(tmp_path):
    axes = parameters.figure(section("mplora_table2", saved(tmp_path, *lora_and_mplora()))).axes[0]
    heights = {bar.get_label(): bar.lines[0].get_ydata()[0] for bar in axes.containers}
    assert heights == pytest.approx({"LoRA r=8": 81, "MPLoRA r=8, best n": 84, "MPLoRA r=8, mean over n": 83})
    assert axes.get_xscale() == "log" and axes.get_xlim() == (294912 / 2, 294912 * 2)
    places = [bar.lines[0].get_xdata()[0] for bar in axes.containers]
    assert sorted(set(places)) == places and np.exp(np.log(places).mean()) == pytest.approx(294912)
    assert "side by side" in axes.get_xlabel()


def test_best_and_mean_over_n_look_different(tmp_path):
    axes = parameters.figure(section("mplora_table2", saved(tmp_path, *lora_and_mplora()))).axes[0]
    looks = {bar.get_label(): bar.lines[0] for bar in axes.containers}
    best, mean = looks["MPLoRA r=8, best n"], looks["MPLoRA r=8, mean over n"]
    assert best.get_color() == mean.get_color()  # one method
    assert len({line.get_marker() for line in looks.values()}) == 3
    assert best.get_markerfacecolor() == best.get_color() and mean.get_markerfacecolor() == "white"


def small_glue(folder):
    """Head only 70 and 72, VeRA 80, LoRA 75, full fine-tuning 90, of STS-B."""
    found = [
        record(method="head", adapter=0, task="stsb", seed=seed, curve=(0.6, top))
        for seed, top in ((0, 0.7), (1, 0.72))
    ]
    found += [
        record(method=method, adapter=adapter, r=r, task="stsb", curve=(0.6, top), **own)
        for method, adapter, r, top, own in (
            ("vera", 7680, 256, 0.8, {"lr": 0.01}),
            ("lora", 73728, 8, 0.75, {}),
            ("full", 22_713_216, 8, 0.9, {"lr": 1e-4}),
        )
    ]
    for each in found:
        each.choices["recipe"], each.run_id = "small", each.run_id.replace("mplora_table2", "small_glue")
    return section("small_glue", saved(folder, *found))


def test_no_adapter_is_a_level_and_adds_no_decades(tmp_path):
    axes = parameters.figure(small_glue(tmp_path)).axes[0]
    assert {bar.get_label() for bar in axes.containers} == {"VeRA r=256", "LoRA r=8", "full fine-tuning"}
    assert axes.get_xlim() == (7680 / 2, 2 * 22_713_216)
    level = next(line for line in axes.lines if line.get_linestyle() == "--")
    assert list(level.get_xdata()) == [0, 1] and list(level.get_ydata()) == pytest.approx([71, 71])
    assert [(text.get_text(), text.xy) for text in axes.texts] == [("head only (no adapter)", (1, pytest.approx(71)))]


def test_steps_are_the_best_mean_up_to_so_many_parameters(tmp_path):
    """LoRA has more parameters than VeRA and a lower score: it raises nothing."""
    axes = parameters.figure(small_glue(tmp_path)).axes[0]
    steps = next(line for line in axes.lines if line.get_label().startswith("steps"))
    assert steps.get_drawstyle() == "steps-post"
    assert list(steps.get_xdata()) == [7680 / 2, 7680, 22_713_216, 2 * 22_713_216]
    assert list(steps.get_ydata()) == pytest.approx([71, 80, 90, 90])
    assert axes.get_xlabel().endswith("steps: head only; VeRA r=256; full fine-tuning")


def test_differences_are_paired_by_seed(tmp_path):
    """The same gain at every seed has no spread, however far the seeds are apart."""
    found = {one.label: one for one in differences(section("mplora_table2", saved(tmp_path, *lora_and_mplora())))}
    assert found.keys() == {"MPLoRA r=8, best n", "MPLoRA r=8, mean over n"}
    best = found["MPLoRA r=8, best n"]
    assert (best.mean, best.low, best.high) == pytest.approx((3, 3, 3))
    assert (best.seeds, best.tasks) == (3, ["mrpc", "rte"])


def test_intervals_come_with_their_seeds():
    spread = Difference(label="A", mean=1.0, low=-1.0, high=3.0, seeds=3, tasks=["mrpc"])
    same = Difference(label="B", mean=2.0, low=2.0, high=2.0 + 1e-12, seeds=9, tasks=["mrpc"])
    axes = forest([spread, same], "title").axes[0]
    bars = [line for line in axes.lines if len(set(line.get_ydata())) == 1 and len(line.get_ydata()) == 2]
    assert [list(bar.get_xdata()) for bar in bars] == [[-1, 3]]  # none for B
    faces = {line.get_xdata()[0]: line.get_markerfacecolor() for line in axes.lines if line.get_marker() == "o"}
    assert faces[2.0] == "white" != faces[1.0]
    assert "t interval over 3 to 9 seeds" in axes.get_xlabel() and "hollow" in axes.get_xlabel()
    alone = forest([spread], "title").axes[0].get_xlabel()
    assert "over 3 seeds" in alone and "hollow" not in alone


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
    table3 = section("mplora_table3", saved(tmp_path, *found))
    figure = sweep.figure(table3, *table3.table.sweeps[0])
    average = next(axes for axes in figure.axes if axes.get_title().startswith("average"))
    ours = next(line for line in average.lines if line.get_label() == "ours")
    assert dict(zip(ours.get_xdata(), ours.get_ydata(), strict=True)) == pytest.approx({0.0: 80, 0.1: 90})
    assert average.get_xscale() == "symlog"
    weights = [0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.6, 0.9, 5, 10]
    assert average.get_xticks().tolist() == weights
    assert [text.get_text() for text in average.get_xticklabels()] == [f"{weight:g}" for weight in weights]
    places = average.transAxes.inverted().transform(average.transData.transform([(weight, 80) for weight in weights]))[
        :, 0
    ]
    assert np.diff(places).min() > 0.02 and places[8] - places[0] > 0.5  # 0 to 0.9
    printed = {line.get_xdata()[0]: line.get_ydata()[0] for line in average.lines if line.get_label() == "published"}
    assert printed[0.1] == 77.00 and printed[10.0] == 75.82 and len(printed) == 11


def test_a_sweep_of_n_or_r_doubles(tmp_path):
    own = {"experiment": "mplora_fig2", "method": "mplora"}
    fig2 = section("mplora_fig2", saved(tmp_path, *(record(n=n, **own) for n in (1, 2, 4))))
    by_n, by_r = (sweep.figure(fig2, *pair).axes[0] for pair in fig2.table.sweeps)
    for axes, values in ((by_n, [1, 2, 3, 4, 6, 8]), (by_r, [1, 2, 4, 8, 16, 32])):
        assert axes.get_xscale() == "log" and axes.xaxis.get_transform().base == 2
        assert axes.get_xticks().tolist() == values and not len(axes.get_xticks(minor=True))


def test_many_panels_wrap(tmp_path):
    tasks = ("mrpc", "rte", "cola", "stsb", "sst2")
    five = section("mplora_table2", saved(tmp_path, *(record(task=task, curve=(0.5, 0.8)) for task in tasks)))
    for figure, columns in ((curves.figure(five), 4), (parameters.figure(five), 2)):
        places = [axes.get_subplotspec() for axes in figure.axes]
        assert len(places) == 5 and places[0].get_gridspec().ncols == columns and figure.get_figwidth() <= 10.4
        assert [bool(axes.get_ylabel()) for axes in figure.axes] == [place.is_first_col() for place in places]


def test_a_spectrum_counts_by_layer_and_module(tmp_path):
    layers = [f"roberta.encoder.layer.{i}.attention.self.{module}" for i in range(2) for module in ("query", "value")]
    found = []
    for seed in range(2):
        one = record(seed=seed, experiment="melora_fig3", recipe="melora/mrpc")
        counts = dict(zip(layers, (8, 6, 4 + seed, 2), strict=True))
        one.epochs[-1]["report"]["singular_values_above_0.1"] = counts
        found.append(one)
    query, value = spectrum.figure(section("melora_fig3", saved(tmp_path, *found))).axes
    assert (query.get_title(), value.get_title()) == ("mrpc: query", "mrpc: value")
    assert query.lines[0].get_ydata().tolist() == [8, 4.5] and value.lines[0].get_ydata().tolist() == [6, 2]


def test_the_same_records_give_the_same_files(tmp_path):
    results = saved(tmp_path, *lora_and_mplora())
    first = {path: path.read_bytes() for path in draw("mplora_table2", results)}
    names = [f"mplora_table2_roberta_base_{kind}" for kind in ("curves", "differences", "parameters")]
    assert sorted(path.name for path in first) == [f"{name}.{end}" for name in names for end in ("png", "svg")]
    assert first == {path: path.read_bytes() for path in draw("mplora_table2", results)}


def test_one_score_is_no_curve(tmp_path):
    """And the curves that an earlier drawing left are removed; another table's stay."""
    results = saved(tmp_path, record(curve=(0.8,)))
    stale = [
        tmp_path / "figures" / f"{name}_roberta_base_curves.{end}"
        for name in ("mplora_table2", "audit")
        for end in ("svg", "png")
    ]
    (tmp_path / "figures").mkdir()
    for path in stale:
        path.touch()
    assert {path.name.rsplit("_", 1)[1] for path in draw("mplora_table2", results)} == {
        "parameters.svg",
        "parameters.png",
    }
    assert [path.exists() for path in stale] == [False, False, True, True]


def test_no_records_no_figures(tmp_path):
    assert draw("mplora_table2", str(tmp_path)) == []
