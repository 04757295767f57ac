"""One access of a layer's weight, or of all weights of a model, however they are normalized."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.cases import Case
from bench.measure import measure, subject
from bench.normalizations import FOREACH, OURS, PER_LAYER
from bench.variants import Setting, builders

pytestmark = [
    pytest.mark.benchmark(disable_gc=True),
    pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"]),
]


def row(setting: Setting, suite: str) -> dict[str, object]:
    return {
        "suite": suite,
        "case": setting.case.name,
        "dtype": str(setting.dtype).removeprefix("torch."),
        "pass": "forward + backward" if setting.backward else "forward",
        **subject(setting.module()),
    }


def bench_layer(
    benchmark: BenchmarkFixture,
    layer: Case,
    dtype: torch.dtype,
    backward: bool,
    device: torch.device,
    seconds: float,
    compiled: bool,
) -> None:
    setting = Setting(layer, device, dtype, backward)
    variants = builders(setting, (OURS,), compiled)
    measure(benchmark, variants, OURS, row(setting, "layer"), device, seconds)


def bench_model(
    benchmark: BenchmarkFixture,
    model: Case,
    dtype: torch.dtype,
    backward: bool,
    device: torch.device,
    seconds: float,
    compiled: bool,
) -> None:
    setting = Setting(model, device, dtype, backward)
    # First what apply_spectral_norm does on the device unless it is told otherwise.
    ours = (PER_LAYER, FOREACH) if device.type == "cpu" else (FOREACH, PER_LAYER)
    variants = builders(setting, ours, compiled)
    measure(benchmark, variants, ours[0], row(setting, "model"), device, seconds)
