"""A step of GAN training: what normalizing the discriminator adds to it."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.measure import measure, subject
from bench.training import NONE, TrainingCase, training_builders


@pytest.mark.benchmark(disable_gc=True)
def bench_training_step(
    benchmark: BenchmarkFixture, training: TrainingCase, device: torch.device, seconds: float
) -> None:
    row = {
        "suite": "training",
        "case": training.name,
        "dtype": "float32",
        "pass": "training step",
        **subject(training.trainer(device).discriminator.network),
    }
    # Twice the time: what normalization adds is a small part of a step.
    measure(benchmark, training_builders(training, device), NONE, row, device, 2 * seconds)
