"""What the report makes of a folder of `make gpu`, whole or broken off."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import report
from bench.normalizations import NEW, OURS
from bench.result import HEAD
from bench.saved import load, read
from bench.variants import COMPILES, COPY

ROOT = Path(report.__file__).parents[1]
CONDITIONS = {
    **dict.fromkeys(HEAD, "1.0"),
    "device": "Test GPU",
    "SNORM_TRITON_BACKEND": "",
    "processors": 16,
    "commit": "0123456789abcdef",
    "uncommitted_changes": False,
    "kernels": "of-these",
}
TESTS = """<testsuites><testsuite tests="5" failures="1" errors="1" skipped="2">
<testcase classname="tests.test_a" name="test_b"><failure message="no&#10;more"/></testcase>
<testcase classname="" name="tests/test_c.py"><error message="collection failure"/></testcase>
</testsuite></testsuites>"""


def timing(ratio):
    return {"median": ratio * 1e-3, "ratio": ratio, "ratio_quartiles": [ratio, ratio]}


def row(case="Linear 1024-1", variants=(NEW,), hour=1, **changes):
    return {
        **CONDITIONS,
        "datetime": f"2026-01-02T{hour:02}:00:00",
        "suite": "layer",
        "case": case,
        "dtype": "float32",
        "pass": "forward",
        "backend": "triton",
        "baseline": OURS,
        "rounds": 11,
        "cpus_used_by_others": 0.0,
        "variants": {COPY: timing(0.5), OURS: timing(1.0), **{x: timing(3.0) for x in variants}},
        "memory": {OURS: {"allocations": 1, "allocated": 1.0, "peak": 1.0}},
        "errors": {},
        **changes,
    }


def step(name, status=0, **changes):
    at = {"datetime": "2026-01-02T01:00:00", "seconds": 12.34, "command": "a command"}
    return {**CONDITIONS, **at, "step": name, "status": status, **changes}


def write(folder, name, *entries):
    (folder / name).write_text("".join(json.dumps(entry) + "\n" for entry in entries))


@pytest.fixture
def results(tmp_path):
    compiled = row(suite="compiled layer", variants=(NEW, COMPILES.format(OURS)))
    write(tmp_path, "rows.jsonl", row("Conv2d 3-64 k3"), row(), compiled)
    write(tmp_path, "steps.jsonl", step("tests", 1), step("layers", "killed after 300 s"))
    (tmp_path / "tests.xml").write_text(TESTS)
    timings = {"the access": {"median": 2e-5, "quartiles": [1e-5, 3e-5]}}
    overhead = {**CONDITIONS, "layer": "Conv2d 3-64 k3", "rows": timings}
    (tmp_path / "overhead.json").write_text(json.dumps(overhead))
    return tmp_path


def test_a_folder_gives_steps_tests_host_and_rows(results):
    text = report.markdown(read(results))
    assert "| tests | exit status 1 | 12.3 |\n| layers | killed after 300 s | 12.3 |" in text
    assert "5 tests: 1 failed, 1 with errors, 2 skipped." in text
    assert "- `tests.test_a::test_b: no`\n- `tests/test_c.py: collection failure`\n" in text
    assert "| the access | 20.0 | 10.0 to 30.0 |" in text
    eager, compiled = text.split("## One weight, compiled or captured, forward")
    assert COMPILES.format(OURS) in compiled
    assert f"| {COMPILES.format(OURS)} |" not in eager
    assert eager.index("| Linear 1024-1 |") < eager.index("| Conv2d 3-64 k3 |")


def test_tests_that_were_cut_short_are_not_all(results):
    write(results, "steps.jsonl", step("tests", "killed after 480 s"))
    assert "5 tests until the run was cut short: 1 failed" in report.markdown(read(results))


@pytest.mark.parametrize("name", ["rows.jsonl", "steps.jsonl"])
def test_a_file_of_the_folder_stands_for_it(results, name):
    assert load(results / name) == read(results)


def test_what_is_saved_loads_again(results, tmp_path):
    result = read(results)
    written = report.save(result, tmp_path / "saved")
    assert [path.suffix for path in written] == [".json", ".md", ".png"]
    assert report.markdown(load(written[0])) == report.markdown(result)
    assert "a command" not in written[0].read_text()


def test_half_a_line_costs_that_line_alone(results):
    file = results / "rows.jsonl"
    file.write_bytes(file.read_bytes()[:-100])
    result = read(results)
    assert len(result["rows"]) == 2
    assert "- rows.jsonl: line 3 is cut off\n" in report.markdown(result)


def test_a_line_after_a_broken_one_counts(results):
    file = results / "rows.jsonl"
    file.write_text('{"case": "Li\n' + file.read_text())
    assert len(read(results)["rows"]) == 3


@pytest.mark.parametrize("name", ["rows.jsonl", "steps.jsonl", "tests.xml", "overhead.json"])
@pytest.mark.parametrize(("content", "what"), [(None, "not there"), ("{<", "cut off")])
def test_what_is_missing_is_said_and_the_rest_reported(results, name, content, what):
    (results / name).unlink()
    if content:
        (results / name).write_text(content)
    line = f"- {name}: line 1 is {what}" if content and "jsonl" in name else f"- {name} is {what}"
    text = report.markdown(read(results))
    assert line in text
    assert "Test GPU" in text


def test_a_folder_without_a_row_or_step_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"nothing to report: .* holds no row"):
        report.main()


def test_the_last_row_of_a_case_counts_and_none_of_another_tree(results):
    write(
        results,
        "rows.jsonl",
        row(commit="another", kernels="others"),
        row(rounds=12, hour=2),
        row(rounds=13, hour=3),
    )
    result = read(results)
    assert [each["rounds"] for each in result["rows"]] == [13]
    assert "- rows.jsonl: 1 of another device, version or tree left out" in report.markdown(result)


def test_it_is_drawn_where_there_is_no_triton(results, tmp_path):
    script = "import runpy, sys; sys.modules['triton'] = None; sys.argv = sys.argv[1:]; "
    script += "runpy.run_module('bench.report', run_name='__main__', alter_sys=False)"
    command = [sys.executable, "-W", "ignore", "-c", script, "report", str(results)]
    drawn = tmp_path / "drawn"
    subprocess.run([*command, "--results", str(drawn)], cwd=ROOT, check=True, capture_output=True)
    assert sorted(path.name for path in drawn.iterdir()) == [
        "Test-GPU.json",
        "Test-GPU.md",
        "Test-GPU.png",
    ]
