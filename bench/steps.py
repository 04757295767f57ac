"""The steps of `make gpu`, in order of worth: each a command that can be typed alone."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NamedTuple

# What a run leaves in its folder.
LOG, STEPS, ROWS, TESTS = "log.txt", "steps.jsonl", "rows.jsonl", "tests.xml"
OVERHEAD, DEVICE_TIME, PROFILE = "overhead.json", "device_time.jsonl", "profile.csv"

WORKERS = min(12, os.cpu_count() or 1)
# They import packages that may not be installed, and hold no test of a GPU.
NOT_OF_A_GPU = ("tests/compatibility", "tests/checkpoints")
# Every kernel, whole rows, runs and chunks: few, since each access is checked.
CHECKED = (
    "float32 and forward_and_backward and (linear or transposed-k4 or conv-channels-last)"
    " or float32 and kernels_match and (linear-odd or transpose-k3) or wide_to_hold"
)
METRICS = (
    "gpu__time_duration.sum",
    "dram__bytes_read.sum",
    "dram__bytes_write.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "sm__maximum_warps_per_active_cycle_pct",
    "launch__registers_per_thread",
    "launch__occupancy_limit_registers",
    "launch__occupancy_limit_shared_mem",
)


class Step(NamedTuple):
    name: str
    shows: str
    command: list[str]
    limit: int  # seconds
    writes: str = ""  # the file that it makes anew
    program: str = ""  # without which on PATH the step is left out


def outcome(status: int | str) -> str:
    """What became of a step: its exit status, or why there is none."""
    return "passed" if status == 0 else f"exit status {status}" if type(status) is int else status


class Settings(NamedTuple):
    """What a rehearsal changes."""

    results: Path
    device: str | None = None
    seconds: float | None = None
    select: str | None = None

    def python(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", *arguments]

    def pytest(self, *arguments: str) -> list[str]:
        chosen = ["-k", self.select] if self.select else []
        return self.python("pytest", "-v", *arguments, *chosen)

    def on_device(self) -> list[str]:
        return ["--device", self.device] if self.device else []

    def for_seconds(self) -> list[str]:
        return ["--seconds", str(self.seconds)] if self.seconds else []

    def bench(self, benchmark: str, *options: str) -> list[str]:
        # A warning must not count as a variant's failure.
        quiet = ("-W", "default", "--benchmark-only", "--benchmark-quiet")
        # In their order, whatever plugin would shuffle them.
        order = ("-p", "no:randomly", "--largest-first")
        rows = ("--rows", str(self.results / ROWS))
        where = (*self.on_device(), *self.for_seconds())
        return self.pytest(f"bench/{benchmark}", *quiet, *order, *rows, *options, *where)


def tests_of(settings: Settings) -> list[str]:
    on_cpu = settings.device == "cpu"
    return [
        *("env", "OMP_NUM_THREADS=1", *["TRITON_INTERPRET=1"] * on_cpu),
        *settings.pytest("-m", "interpreted" if on_cpu else "gpu", "-n", str(WORKERS)),
        "--benchmark-disable",  # or pytest-benchmark 5.2 warns of workers, and that is an error
        *("--junitxml", str(settings.results / TESTS), "--continue-on-collection-errors"),
        *(f"--ignore={path}" for path in NOT_OF_A_GPU),
    ]


def sanitized(tool: str) -> list[str]:
    python = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", "-k", CHECKED]
    return [
        # Memory of its own for each tensor, so that an access past its end is one of nothing.
        *("env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", "compute-sanitizer", "--tool", tool),
        *("--target-processes", "application-only", "--error-exitcode", "9"),
        *(*python, "tests/test_operations.py", "tests/gpu"),
    ]


def profiled(results: Path) -> list[str]:
    return [
        *("ncu", "--csv", "--log-file", str(results / PROFILE), "--force-overwrite"),
        *("--profile-from-start", "off", "--kernel-name", "regex:^power_(rows|chunked)$"),
        *("--print-units", "base", "--metrics", ",".join(METRICS)),
        *(sys.executable, "-m", "bench.profiled"),
    ]


def all_steps(settings: Settings) -> list[Step]:
    bench, results = settings.bench, settings.results
    layers, models = "bench_access.py::bench_layer", "bench_access.py::bench_model"
    single, half = ("--dtype", "float32"), ("--dtype", "bfloat16")
    eager, compiled = ("--variants", "eager"), ("--variants", "compiled")
    overhead = ("bench.overhead", "--json", str(results / OVERHEAD))
    host = settings.python(*overhead, *settings.on_device(), *settings.for_seconds())
    # Of a stand-in there is nothing to keep.
    kept = [] if settings.device else ["--results", "bench/results"]
    report = settings.python("bench.report", str(results), *kept)
    kernels = settings.python("bench.device_time", "--jsonl", str(results / DEVICE_TIME))
    sanitizer = "compute-sanitizer"
    return [
        Step("tests", "every kernel against float64", tests_of(settings), 480, TESTS),
        Step("layers", "one weight, float32", bench(layers, *single, *eager), 300),
        Step("overhead", "the host's time of an access", host, 120, OVERHEAD),
        Step(
            "device-time",
            "the device's time, kernel by kernel",
            kernels,
            180,
            DEVICE_TIME,
            "nvidia-smi",
        ),
        Step("models", "all weights of a model", bench(models, "--dtype", "both", *eager), 300),
        Step("training", "a step of a GAN", bench("bench_training.py"), 180),
        Step("layers-bfloat16", "one weight, bfloat16", bench(layers, *half, *eager), 300),
        Step(
            "compiled",
            "what compilers and graphs make of them",
            bench("bench_access.py", *single, *compiled),
            480,
        ),
        Step("memcheck", "no access outside a tensor", sanitized("memcheck"), 300, "", sanitizer),
        Step("racecheck", "no race in shared memory", sanitized("racecheck"), 300, "", sanitizer),
        Step("profile", "bytes, registers, occupancy", profiled(results), 180, PROFILE, "ncu"),
        Step("report", "tables and chart of what was saved", report, 120),
    ]
