"""What the benchmarks' report, chart and comparison make of a result."""

import sys

import pytest

from bench import compare, report
from bench.bandwidth import load_counts, save_counts, with_bandwidth
from bench.chart import COLORS, figure_of
from bench.normalizations import FOREACH, LEGACY, NEW, OURS, PER_LAYER
from bench.result import HEAD, condense, load, mean_ratio, pool
from bench.training import NONE
from bench.variants import COPY

DEVICE = "Test GPU, 80 GB"


def timing(ratio, spread=0.1):
    quartiles = [ratio * (1 - spread), ratio * (1 + spread)]
    return {"median": ratio * 1e-3, "ratio": ratio, "ratio_quartiles": quartiles}


def layer_row(case="Linear 4-4", new=3.0, copy=0.5, spread=0.1, **changes):
    """One row of a result, in which ours takes a millisecond."""
    return {
        "suite": "layer",
        "case": case,
        "dtype": "float32",
        "pass": "forward",
        "backend": "triton",
        "baseline": OURS,
        "rounds": 11,
        "cpus_used_by_others": 0.0,
        "variants": {
            COPY: timing(copy, spread),
            OURS: timing(1.0, 0.0),
            NEW: timing(new, spread),
            LEGACY: timing(2.0),
        },
        "memory": {
            OURS: {"allocations": 1, "allocated": 1.0, "peak": 1.0},
            NEW: {"allocations": 2, "allocated": 2.0, "peak": 2.5},
        },
        "errors": {},
        **changes,
    }


def model_variants():
    return {COPY: timing(0.5), FOREACH: timing(1.0, 0.0), NEW: timing(3.0), LEGACY: timing(2.0)}


def training_row():
    memory = {NONE: {"peak": 5.0}, PER_LAYER: {"peak": 6.0}}
    variants = {NONE: timing(1.0, 0.0), PER_LAYER: timing(1.25)}
    row = layer_row("demo", suite="training", variants=variants, memory=memory)
    return row | {"baseline": NONE, "pass": "training step"}


def result_of(*rows):
    return {
        "datetime": "2026-01-02T03:04:05",
        "commit": "0123456789abcdef",
        "uncommitted_changes": False,
        "device": DEVICE,
        "processors": 2,
        "snorm_triton": "1.0",
        "torch": "2.0",
        "triton": "3.0",
        "python": "3.11",
        "SNORM_TRITON_BACKEND": "",
        "rows": list(rows),
    }


def lines_with(text, *words):
    return [line for line in text.splitlines() if all(word in line for word in words)]


def test_condensed_run_keeps_rows_and_device_and_no_timings():
    result = result_of(layer_row())
    measured = {**{key: result[key] for key in HEAD}, **layer_row()}
    run = {
        "datetime": result["datetime"],
        "commit_info": {"id": result["commit"], "dirty": False},
        "machine_info": {"node": "a name"},
        "benchmarks": [{"stats": {"data": [1]}, "extra_info": measured}],
    }
    assert condense(run) == result


def with_quartiles(row):
    for each in row["variants"].values():
        each["quartiles"] = each["ratio_quartiles"]
    return row


def test_runs_are_pooled_row_by_row():
    runs = [
        result_of(with_quartiles(layer_row(new=0.5)), with_quartiles(layer_row("Linear 5-5"))),
        result_of(with_quartiles(layer_row(new=3.0, cpus_used_by_others=0.2, rounds=9))),
        result_of(with_quartiles(layer_row(new=4.0))),
    ]
    pooled = pool(runs)
    row, only_once = pooled["rows"]
    assert (row["runs"], row["rounds"], row["cpus_used_by_others"]) == (3, 9, 0.2)
    assert row["variants"][NEW]["ratio"] == 3.0
    assert row["variants"][NEW]["ratio_quartiles"] == pytest.approx([2.7, 3.3])
    assert (only_once["case"], only_once["runs"]) == ("Linear 5-5", 1)
    assert "All that in 1 to 3 runs" in report.markdown(pooled)
    assert runs[0]["rows"][0]["variants"][NEW]["ratio"] == 0.5


def test_runs_of_different_trees_are_not_pooled():
    one = result_of(layer_row())
    with pytest.raises(ValueError, match=r"runs of different commit: .* and 'other'"):
        pool([one, one | {"commit": "other"}])


def test_geometric_means():
    rows = [layer_row("a", new=2.0), layer_row("b", new=8.0)]
    assert mean_ratio(rows, NEW) == pytest.approx(4)
    assert mean_ratio([*rows, layer_row("c", variants={})], NEW) is None
    line = "| One weight, spectral norm, forward | float32 | 2 | 4.00 | 2.00 | 0.50 |"
    assert line in report.markdown(result_of(*rows))


def test_time_and_memory_of_a_layer():
    times, memory = lines_with(report.markdown(result_of(layer_row())), "Linear 4-4")
    assert "500 µs (0.50; 0.45 to 0.55)" in times
    assert "**1 ms** (2.00 copies)" in times
    assert "3 ms (3.00; 2.70 to 3.30)" in times
    assert memory == "| Linear 4-4 | float32 | 1 (0.00) | 2 (1.50) |"


def counted(suite, case):
    moved = {"forward": 150, "evaluation": 130, "backward": 200}
    return {"suite": suite, "case": case, "dtype": "float32", "copy": 100, "bytes": moved}


def with_counts(result, tmp_path, *cases, kernels="of-these"):
    save_counts(tmp_path / "traffic.json", kernels, list(cases))
    return with_bandwidth(result, load_counts(tmp_path / "traffic.json"))


def test_bandwidth_of_what_kernels_moved(tmp_path):
    rows = [
        layer_row("Conv2d 3-64 k3"),
        layer_row("Conv2d 3-64 k3", **{"pass": "forward + backward"}, copy=0.25),
        layer_row("SN-DCGAN", suite="model", baseline=FOREACH, variants=model_variants()),
        layer_row("another"),
    ]
    result = result_of(*({**row, "kernels": "of-these"} for row in rows))
    cases = counted("layer", "Conv2d 3-64 k3"), counted("model", "SN-DCGAN")
    text = report.markdown(with_counts(result, tmp_path, *cases))
    assert lines_with(text, "| Conv2d 3-64 k3", "**1 ms** (2.00 copies; 75% of the bandwidth)")
    assert lines_with(text, "| Conv2d 3-64 k3", "**1 ms** (4.00 copies; 88% of the bandwidth)")
    assert lines_with(text, "| SN-DCGAN", "**1 ms** (2.00 copies; 75% of the bandwidth)")
    assert lines_with(text, "| another", "**1 ms** (2.00 copies)")
    assert "how much of their bandwidth" in text


def test_no_bandwidth_from_counts_of_other_kernels_or_none(tmp_path):
    result = result_of(layer_row("a", kernels="of-these"))
    for each in (with_counts(result, tmp_path, counted("layer", "a"), kernels="of-others"), result):
        text = report.markdown(each)
        assert lines_with(text, "| a", "**1 ms** (2.00 copies)")
        assert "were not counted" in text


def test_no_bandwidth_where_no_kernel_ran():
    text = report.markdown(result_of(layer_row("Conv2d 3-64 k3", backend="torch")))
    assert lines_with(text, "| Conv2d 3-64 k3", "**1 ms** (2.00 copies)")
    assert "bandwidth" not in text


def test_overhead_of_a_training_step():
    (line,) = lines_with(report.markdown(result_of(training_row())), "demo")
    assert line == "| demo | 1 ms | +25.0 % (+12.5 to +37.5); +1.00 |"


def test_failed_variant_is_named_with_its_error():
    row = layer_row(errors={"torch new, compiled": "RuntimeError: no\ncompiler"})
    text = report.markdown(result_of(row))
    assert lines_with(text, "Linear 4-4", "failed (below)")
    assert lines_with(text, "- torch new, compiled, Linear 4-4", "`RuntimeError: no compiler`")


def test_busy_machine_is_called_busy():
    busy = report.markdown(result_of(layer_row(cpus_used_by_others=0.5)))
    quiet = report.markdown(result_of(layer_row(cpus_used_by_others=0.1)))
    assert "too busy" in busy
    assert "too busy" not in quiet


def test_saved_result_loads_again(tmp_path):
    result = result_of(layer_row(), training_row())
    written = report.save(result, tmp_path)
    assert [path.name for path in written] == [
        "Test-GPU-80-GB.json",
        "Test-GPU-80-GB.md",
        "Test-GPU-80-GB.png",
    ]
    assert load(written[0]) == result
    assert written[1].read_text() == report.markdown(result)
    assert written[2].read_bytes().startswith(b"\x89PNG")


def test_training_alone_has_no_chart(tmp_path):
    written = report.save(result_of(training_row()), tmp_path)
    assert [path.suffix for path in written] == [".json", ".md"]


def bars_of(axes):
    """(color, where it starts, where it ends) of each bar."""
    return [
        (bar.get_facecolor(), bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches
    ]


def test_a_bar_ends_at_the_speed_up_and_a_mean_follows():
    rows = [layer_row("a", new=2.0), layer_row("b", new=0.5)]
    (axes,) = figure_of(result_of(*rows)).axes
    ends = [(start, end) for _, start, end in bars_of(axes)]
    assert ends == [(1, 2.0), (1, 0.5), (1, pytest.approx(1.0))]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["One weight", "a", "b", "geometric mean"]


def test_passes_differ_in_color_and_dtypes_in_panel():
    rows = [
        layer_row(**{"dtype": dtype, "pass": direction})
        for dtype in ("float32", "bfloat16")
        for direction in COLORS
    ]
    panels = figure_of(result_of(*rows)).axes
    assert [axes.get_title(loc="left") for axes in panels] == ["float32", "bfloat16"]
    for axes in panels:
        assert len({color for color, _, _ in bars_of(axes)}) == len(COLORS)


def test_title_gives_device_versions_and_date():
    texts = " ".join(text.get_text() for text in figure_of(result_of(layer_row())).texts)
    for part in (DEVICE, "torch 2.0", "triton 3.0", "snorm_triton 1.0", "2026-01-02"):
        assert part in texts


def verdict_of(then, now):
    (comparison,) = compare.compare(result_of(then), result_of(now))
    return comparison.verdict


def test_the_same_result_is_not_slower():
    assert verdict_of(layer_row(), layer_row()) == ""


def test_slower_against_both_yardsticks_is_slower():
    slow = layer_row(new=3.0 / 2, copy=0.5 / 2)
    assert verdict_of(layer_row(), slow) == "slower"
    assert verdict_of(slow, layer_row()) == "faster"


@pytest.mark.parametrize("yardstick", ["new", "copy"])
def test_one_yardstick_that_moved_alone_decides_nothing(yardstick):
    assert verdict_of(layer_row(), layer_row(**{yardstick: 0.1})) == ""


def test_the_spread_is_allowed_for():
    slower = {"new": 3.0 / 1.3, "copy": 0.5 / 1.3}
    assert verdict_of(layer_row(spread=0.01), layer_row(**slower, spread=0.01)) == "slower"
    assert verdict_of(layer_row(spread=0.2), layer_row(**slower, spread=0.01)) == ""
    assert verdict_of(layer_row(spread=0.01), layer_row(**slower, spread=0.2)) == ""


def test_one_more_allocation_fails():
    memory = {OURS: {"allocations": 2, "allocated": 2.0, "peak": 2.0}}
    assert verdict_of(layer_row(), layer_row(memory=memory)) == "allocates 2 weights, not 1"


def test_only_what_both_hold_on_the_same_backend_is_compared():
    then = result_of(layer_row("a"), layer_row("b"), training_row())
    now = result_of(layer_row("b"), layer_row("a", backend="torch"), training_row())
    assert [each.row["case"] for each in compare.compare(then, now)] == ["b"]


def run_compare(monkeypatch, tmp_path, now, then=None):
    results = tmp_path / "results"
    if then is not None:
        report.save(then, results)
    (path,) = [p for p in report.save(now, tmp_path / "now") if p.suffix == ".json"]
    monkeypatch.setattr(sys, "argv", ["compare", str(path), "--results", str(results)])
    compare.main()


def test_command_prints_the_table_and_fails_on_a_slower_row(monkeypatch, tmp_path, capsys):
    then = result_of(layer_row("a"), layer_row("b"))
    now = result_of(layer_row("a"), layer_row("b", new=1.0, copy=0.1))
    with pytest.raises(SystemExit, match="in 1 of 2 rows"):
        run_compare(monkeypatch, tmp_path, now, then)
    a, b = lines_with(capsys.readouterr().out, "forward")
    assert a.endswith("| 0.33 (0.30 to 0.37) | 0.33 (0.30 to 0.37) |  |")
    assert b.endswith("| 0.33 (0.30 to 0.37) | 1.00 (0.91 to 1.11) | slower |")


def test_command_passes_where_nothing_is_slower(monkeypatch, tmp_path, capsys):
    result = result_of(layer_row("a"))
    run_compare(monkeypatch, tmp_path, result, result)
    assert "not slower in any of 1 rows" in capsys.readouterr().out


def test_command_names_the_device_without_a_result(monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match=f"no result of {DEVICE} is committed"):
        run_compare(monkeypatch, tmp_path, result_of(layer_row()))
