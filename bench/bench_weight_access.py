"""Ours beside torch's two spectral norms, and a copy of the weight as the yardstick."""

from __future__ import annotations

import gc
import os
import platform
from functools import partial
from time import perf_counter
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import snorm_triton
from bench.cases import Case
from bench.device import cpu_seconds_of_others, device_name, synchronize
from bench.rotation import Rotation, Run
from bench.variants import OURS, Setting, builders

try:
    from triton import __version__ as triton_version
except ImportError:
    triton_version = "none"


def build(setting: Setting) -> tuple[dict[str, Run], dict[str, str]]:
    """The variants that run here, and of the others the error each one raised."""
    runs, errors = {}, {}
    for name, builder in builders(setting).items():
        try:
            run = builder()
            run()
            synchronize(setting.device)
        except Exception as error:
            if name == OURS:
                raise
            errors[name] = f"{type(error).__name__}: {error}"[:500]
        else:
            runs[name] = run
    return runs, errors


def conditions(setting: Setting) -> dict[str, Any]:
    module = snorm_triton.spectral_norm(setting.module())
    ((_, backend, reason),) = snorm_triton.backend_report(module)
    return {
        "device": device_name(setting.device),
        "processors": os.cpu_count(),
        "torch": torch.__version__,
        "triton": triton_version,
        "python": platform.python_version(),
        "snorm_triton": snorm_triton.__version__,
        "SNORM_TRITON_BACKEND": os.environ.get("SNORM_TRITON_BACKEND", ""),
        "backend": backend,
        "reason": reason,
        "case": setting.case.name,
        "shape": list(module.weight.shape),
        "dtype": str(setting.dtype).removeprefix("torch."),
        "layout": setting.case.layout,
        "pass": "forward + backward" if setting.backward else "forward",
    }


@pytest.mark.benchmark(disable_gc=True)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def bench_weight_access(
    benchmark: BenchmarkFixture,
    case: Case,
    dtype: torch.dtype,
    backward: bool,
    device: torch.device,
    seconds: float,
) -> None:
    setting = Setting(case, device, dtype, backward)
    runs, errors = build(setting)
    rotation = Rotation(runs, partial(synchronize, device))
    rounds = rotation.calibrate(seconds)
    gc.collect()
    start, others = perf_counter(), cpu_seconds_of_others()
    benchmark.pedantic(rotation, rounds=rounds)
    if others is not None:
        others = (cpu_seconds_of_others() - others) / (perf_counter() - start)
    benchmark.extra_info.update(conditions(setting))
    benchmark.extra_info.update(
        rounds=rounds,
        accesses_per_round=rotation.accesses,
        cpus_used_by_others=others,
        variants=rotation.statistics(baseline=OURS),
        errors=errors,
    )
