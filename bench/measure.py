"""One benchmark: build its variants, time them in turns, count what they allocate."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from functools import partial
from time import perf_counter
from typing import Any

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn

import snorm_triton
from bench.conditions import conditions
from bench.device import cpu_seconds_of_others, synchronize
from bench.memory import memory_of
from bench.normalizations import (
    BY_CONSTRAINT,
    LEGACY,
    NEW,
    PER_LAYER,
    SPECTRAL_NORM,
    layers_of,
)
from bench.rotation import Rotation
from bench.variants import GRAPHED, NEW_COMPILED, Run

# What may keep a baseline from running here, to be reported. Any other error fails the benchmark,
# and so does every error of a variant that is not listed: ours, the copy, no normalization.
REPORTED: dict[str, type[Exception]] = {
    NEW: RuntimeError,  # torch's, for whatever it does not support, and for memory it lacks
    LEGACY: RuntimeError,
    GRAPHED.format(NEW): RuntimeError,
    NEW_COMPILED: Exception,  # it runs a compiler, which may raise anything
}

Builders = Mapping[str, Callable[[], Run]]


def build(
    builders: Builders, device: torch.device, deferred: list[Exception] | None = None
) -> tuple[dict[str, Run], dict[str, str]]:
    """The variants that run here, and of those that do not the error each one raised.

    An error that is not to be expected is raised, or added to `deferred` to be raised later.
    """
    runs, errors = {}, {}
    for name, builder in builders.items():
        try:
            run = builder()
            run()
            synchronize(device)
        except Exception as error:
            if not isinstance(error, REPORTED.get(name, ())):
                if deferred is None:
                    raise
                deferred.append(error)
            errors[name] = f"{type(error).__name__}: {error}"[:500]
        else:
            runs[name] = run
    return runs, errors


def subject(model: nn.Module, constraint: str = SPECTRAL_NORM) -> dict[str, Any]:
    """What is normalized, and by which backend of ours; the model stays normalized."""
    weights = len(layers_of(model))
    BY_CONSTRAINT[constraint][PER_LAYER](model)
    reports = snorm_triton.backend_report(model)
    return {
        "constraint": constraint,
        "backend": ", ".join(dict.fromkeys(report.backend for report in reports)) or "torch",
        "reason": "; ".join(dict.fromkeys(report.reason for report in reports)),
        "weights": weights,
        "bytes": sum(
            weight.nbytes
            for name, weight in model.named_parameters()
            if name.endswith((".weight.original", ".weight.original1"))
        ),
    }


def measure(
    benchmark: BenchmarkFixture,
    builders: Builders,
    baseline: str,
    row: dict[str, Any],
    device: torch.device,
    seconds: float,
    deferred: list[Exception] | None = None,
) -> None:
    """Adds to the benchmark's `extra_info` the row of the result."""
    runs, errors = build(builders, device, deferred)
    rotation = Rotation(runs, partial(synchronize, device))
    rounds = rotation.calibrate(seconds)
    gc.collect()
    start, others = perf_counter(), cpu_seconds_of_others()
    benchmark.pedantic(rotation, rounds=rounds)
    if others is not None:
        others = (cpu_seconds_of_others() - others) / (perf_counter() - start)
    # A graph keeps its memory and allocates none when it is replayed: nothing to compare.
    counted = {name: run for name, run in runs.items() if "graph" not in name}
    benchmark.extra_info.update(conditions(device))
    benchmark.extra_info.update(row)
    benchmark.extra_info.update(
        baseline=baseline,
        rounds=rounds,
        accesses_per_round=rotation.accesses,
        cpus_used_by_others=others,
        variants=rotation.statistics(baseline),
        memory={name: memory_of(run, device, row["bytes"]) for name, run in counted.items()},
        errors=errors,
    )
