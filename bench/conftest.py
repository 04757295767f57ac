from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.cases import LAYERS, MODELS, Case
from bench.compare import recorded
from bench.conditions import tree
from bench.device import device_name, find_gpu
from bench.training import TRAININGS
from bench.variants import ALL, CHOICES


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("snorm_triton")
    group.addoption("--device", help="where to measure; default: the GPU if there is one, else cpu")
    group.addoption("--dtype", help="float32, bfloat16 or both; default: float32, on a GPU both")
    group.addoption("--seconds", type=float, help="for each benchmark; default: 6, on a GPU 2")
    group.addoption("--no-compiled", action="store_true", help="leave torch.compile out")
    group.addoption(
        "--variants",
        choices=CHOICES,
        default=ALL,
        help="eager, or what a compiler and a graph make of ours and of torch's; default: all",
    )
    group.addoption("--largest-first", action="store_true", help="large weights before small ones")
    group.addoption("--rows", type=Path, help="append each row to this file once it is measured")
    group.addoption("--recorded", action="store_true", help="refuse a device without a result")


def chosen_device(config: pytest.Config) -> torch.device:
    asked = config.getoption("--device")
    return torch.device(asked) if asked else find_gpu() or torch.device("cpu")


def chosen_dtypes(config: pytest.Config) -> list[str]:
    asked = config.getoption("--dtype")
    if asked is None:
        asked = "float32" if chosen_device(config).type == "cpu" else "both"
    dtypes = ["float32", "bfloat16"]
    if asked not in (*dtypes, "both"):
        raise pytest.UsageError(f"--dtype must be float32, bfloat16 or both, got {asked}")
    return dtypes if asked == "both" else [asked]


def pytest_sessionstart(session: pytest.Session) -> None:
    if session.config.getoption("--recorded"):
        try:
            recorded(device_name(chosen_device(session.config)))
        except FileNotFoundError as error:
            raise pytest.UsageError(str(error)) from None


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    return chosen_device(pytestconfig)


@pytest.fixture(scope="session")
def seconds(pytestconfig: pytest.Config, device: torch.device) -> float:
    return pytestconfig.getoption("--seconds") or (6.0 if device.type == "cpu" else 2.0)


@pytest.fixture(scope="session")
def variants(pytestconfig: pytest.Config) -> str:
    return pytestconfig.getoption("--variants")


@pytest.fixture(scope="session")
def compiles(pytestconfig: pytest.Config) -> bool:
    return not pytestconfig.getoption("--no-compiled")


@pytest.fixture(autouse=True)
def appended_row(benchmark: BenchmarkFixture, pytestconfig: pytest.Config) -> Iterator[None]:
    """Whatever becomes of the run, the rows that were measured are there."""
    yield
    file = pytestconfig.getoption("--rows")
    if file and benchmark.extra_info:
        row = {"datetime": datetime.now().isoformat(), **tree(), **benchmark.extra_info}
        with file.open("a") as rows:
            rows.write(json.dumps(row) + "\n")


def ordered(cases: tuple[Case, ...], config: pytest.Config) -> list[Case]:
    if not config.getoption("--largest-first"):
        return list(cases)
    return sorted(cases, key=Case.elements, reverse=True)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    on_cpu = chosen_device(metafunc.config).type == "cpu"
    trainings = [training for training in TRAININGS if not (on_cpu and training.gpu_only)]
    layers, models = (ordered(cases, metafunc.config) for cases in (LAYERS, MODELS))
    for argument, cases in (("layer", layers), ("model", models), ("training", trainings)):
        if argument in metafunc.fixturenames:
            ids = [case.name.replace(" ", "-") for case in cases]
            metafunc.parametrize(argument, cases, ids=ids)
    if "dtype" in metafunc.fixturenames:
        dtypes = chosen_dtypes(metafunc.config)
        metafunc.parametrize("dtype", [getattr(torch, name) for name in dtypes], ids=dtypes)
