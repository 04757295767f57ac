"""The runner of `make gpu`: whatever becomes of a step, the next runs and what was said is kept."""

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from time import sleep

import pytest

from bench import gpu
from bench.steps import LOG, ROWS, STEPS, TESTS, Settings, Step, all_steps

ROOT = Path(gpu.__file__).parents[1]
REAL = all_steps(Settings(Path("results")))
# Deaf to interrupts, as its child is.
DEAF = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "


def step(name, code, limit=60, **options):
    return Step(name, f"what {name} shows", [sys.executable, "-c", code], limit, **options)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run steps as the command does; its exit status, and what it wrote of each step."""

    def runner(*steps):
        monkeypatch.setattr(gpu, "all_steps", lambda settings: list(steps))
        monkeypatch.setattr(gpu, "conditions", lambda *_: {"device": "Test GPU"})
        monkeypatch.setattr(gpu, "GRACE", 0.2)
        monkeypatch.setattr(sys, "argv", ["gpu", str(tmp_path)])
        monkeypatch.setattr(signal, "signal", lambda *handler: None)
        status = gpu.main()
        return status, [json.loads(line) for line in (tmp_path / STEPS).read_text().splitlines()]

    return runner


def test_steps_go_on_after_one_that_fails(run, tmp_path):
    steps = [
        step("fails", "print('what it said'); raise SystemExit(3)"),
        step("dies", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"),
        Step("missing", "nothing", ["/no/such/program"], 60),
        step("works", "print('to the end')"),
    ]
    status, lines = run(*steps)
    assert status == 1
    missing = lines[2]["status"]
    assert [line["status"] for line in lines] == [3, "ended by SIGSEGV", missing, 0]
    assert missing.startswith("did not start")
    assert {line["device"] for line in lines} == {"Test GPU"}
    log = (tmp_path / LOG).read_text()
    for each in steps:
        assert f"=== {each.name}: {each.shows}; at most 60 s\n{shlex.join(each.command)}\n" in log
    assert log.index("what it said") < log.index("=== works") < log.index("to the end")


def test_all_that_works_is_a_success_and_so_is_a_program_that_is_not_there(run):
    absent = step("checked", "raise SystemExit(1)", program="no-such-program")
    status, lines = run(step("works", "pass"), absent)
    assert status == 0
    assert lines[1]["status"] == "no-such-program is not there"


def is_free(lock):
    """Whether no process holds the lock any more; the kernel may take a moment to end one."""
    with lock.open("a") as file:
        for _ in range(100):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                sleep(0.05)
            else:
                return True
    return False


def test_a_step_that_hangs_is_killed_with_its_children(run, tmp_path):
    lock = tmp_path / "lock"
    child = f"import fcntl, time; f = open({str(lock)!r}, 'w'); fcntl.flock(f, fcntl.LOCK_EX); "
    child += "print('locked', flush=True); time.sleep(600)"
    parent = DEAF + f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    status, lines = run(step("hangs", parent, limit=5), step("works", "pass"))
    assert status == 1
    assert [line["status"] for line in lines] == ["killed after 5 s", 0]
    assert "locked" in (tmp_path / LOG).read_text()
    assert is_free(lock)


def test_a_step_at_its_limit_may_write_what_it_knows(run, tmp_path):
    code = "import time\ntry: time.sleep(600)\nexcept KeyboardInterrupt: print('so far')"
    assert run(step("slow", code, limit=3))[1][0]["status"] == "killed after 3 s"
    assert "so far" in (tmp_path / LOG).read_text()


def test_the_file_of_an_earlier_run_does_not_pass_for_this_ones(run, tmp_path):
    (tmp_path / TESTS).write_text("old")
    run(step("tests", "raise SystemExit(1)", writes=TESTS))
    assert not (tmp_path / TESTS).exists()


def test_an_interrupt_ends_with_one_line_and_loses_nothing(tmp_path):
    child = "import time; print('begun', flush=True); time.sleep(600)"
    script = f"""
import sys
from bench import gpu
from bench.steps import Step
gpu.all_steps = lambda settings: [Step("hangs", "", [sys.executable, "-c", {child!r}], 60)]
gpu.conditions = lambda *_: {{}}
sys.argv = ["gpu", {str(tmp_path)!r}]
sys.exit(gpu.main())
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    runner = subprocess.Popen(
        [sys.executable, "-c", script],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while runner.stdout.readline() != "begun\n":
        assert runner.poll() is None
    runner.send_signal(signal.SIGINT)
    _, said = runner.communicate(timeout=60)
    assert runner.returncode == 130
    assert said == f"interrupted; what was measured is in {tmp_path}\n"
    assert json.loads((tmp_path / STEPS).read_text())["status"] == "interrupted"
    assert "begun" in (tmp_path / LOG).read_text()


def test_results_must_be_a_folder(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    for path in (file, file / "below"):
        monkeypatch.setattr(sys, "argv", ["gpu", str(path)])
        with pytest.raises(SystemExit, match=f"RESULTS must be a folder .*, got {path}: "):
            gpu.main()


def test_a_device_that_is_not_there_is_refused_in_the_log_too(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu", str(tmp_path), "--device", "no-device"])
    with pytest.raises(SystemExit) as refusal:
        gpu.main()
    assert "no-device" in str(refusal.value)
    assert (tmp_path / LOG).read_text() == f"{refusal.value}\n"


def test_the_list_names_every_step_and_runs_none(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu", str(tmp_path / "results"), "--list"])
    assert gpu.main() == 0
    listed = capsys.readouterr().out
    for each in REAL:
        assert f"{each.name}: {each.shows}; at most {each.limit} s" in listed
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("real", REAL, ids=lambda real: real.name)
def test_a_step_fits_into_a_command_and_can_be_typed(real):
    assert real.limit <= 480
    assert shlex.split(gpu.printed(real)) == real.command


def test_a_run_leaves_few_files():
    assert len({LOG, STEPS, ROWS, *(real.writes for real in REAL)} - {""}) <= 7


def benchmarks(command, *options):
    # No worker of this run's: pytest-benchmark measures nothing in one.
    alone = {name: x for name, x in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    run = subprocess.run([*command, *options], cwd=ROOT, env=alone, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.mark.parametrize("name", ["models", "layers-bfloat16", "compiled"])
def test_pytest_understands_the_commands_of_the_benchmarks(name):
    (command,) = [real.command for real in REAL if real.name == name]
    collected = benchmarks(command, "--device", "cpu", "--collect-only", "-q")
    assert "forward+backward" in collected


def test_a_row_is_appended_once_it_is_measured(tmp_path):
    settings = Settings(tmp_path, "cpu", 0.01, "Conv2d-3-64 and not backward or 1024-1-")
    (command,) = [each.command for each in all_steps(settings) if each.name == "layers"]
    (tmp_path / ROWS).write_text("{}\n")
    benchmarks(command)
    earlier, *rows = map(json.loads, (tmp_path / ROWS).read_text().splitlines())
    assert earlier == {}
    named = [(row["case"], row["pass"]) for row in rows]
    assert named == [
        ("Conv2d 3-64 k3", "forward"),
        ("Linear 1024-1", "forward"),
        ("Linear 1024-1", "forward + backward"),
    ]
    assert {"commit", "datetime", "device", "kernels", "variants"} <= rows[0].keys()
