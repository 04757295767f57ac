"""One access of a layer's weight, or of all weights of a model, however they are normalized."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.cases import Case
from bench.measure import measure, subject
from bench.normalizations import FOREACH, OURS, PER_LAYER
from bench.variants import COMPILED, COPY, Setting, builders

pytestmark = [
    pytest.mark.benchmark(disable_gc=True),
    pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"]),
]


def measure_accesses(
    benchmark: BenchmarkFixture,
    setting: Setting,
    suite: str,
    ours: tuple[str, ...],
    seconds: float,
    variants: str,
    compiles: bool,
) -> None:
    row = {
        "suite": f"compiled {suite}" if variants == COMPILED else suite,
        "case": setting.case.name,
        "dtype": str(setting.dtype).removeprefix("torch."),
        "pass": "forward + backward" if setting.backward else "forward",
        **subject(setting.module(), setting.case.constraint),
    }
    chosen = builders(setting, ours, variants, compiles)
    if set(chosen) == {COPY, ours[0]}:
        pytest.skip("neither compiled nor captured in a graph")
    # What a compiler or a graph breaks must not cost the row what the others took.
    deferred: list[Exception] | None = [] if variants == COMPILED else None
    measure(benchmark, chosen, ours[0], row, setting.device, seconds, deferred)
    if deferred:
        raise ExceptionGroup("the row lacks variants of ours", deferred)


def bench_layer(
    benchmark: BenchmarkFixture,
    layer: Case,
    dtype: torch.dtype,
    backward: bool,
    device: torch.device,
    seconds: float,
    variants: str,
    compiles: bool,
) -> None:
    setting = Setting(layer, device, dtype, backward)
    measure_accesses(benchmark, setting, "layer", (OURS,), seconds, variants, compiles)


def bench_model(
    benchmark: BenchmarkFixture,
    model: Case,
    dtype: torch.dtype,
    backward: bool,
    device: torch.device,
    seconds: float,
    variants: str,
    compiles: bool,
) -> None:
    setting = Setting(model, device, dtype, backward)
    # First what apply_spectral_norm does on the device unless it is told otherwise.
    ours = (PER_LAYER, FOREACH) if device.type == "cpu" else (FOREACH, PER_LAYER)
    measure_accesses(benchmark, setting, "model", ours, seconds, variants, compiles)
