from __future__ import annotations

import pytest
import torch

from bench.cases import LAYERS, MODELS
from bench.compare import recorded
from bench.device import device_name, find_gpu
from bench.training import TRAININGS


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("snorm_triton")
    group.addoption("--device", help="where to measure; default: the GPU if there is one, else cpu")
    group.addoption("--dtype", help="float32, bfloat16 or both; default: float32, on a GPU both")
    group.addoption("--seconds", type=float, help="for each benchmark; default: 6, on a GPU 2")
    group.addoption("--no-compiled", action="store_true", help="leave torch.compile out")
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
def compiled(pytestconfig: pytest.Config) -> bool:
    return not pytestconfig.getoption("--no-compiled")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    on_cpu = chosen_device(metafunc.config).type == "cpu"
    trainings = [training for training in TRAININGS if not (on_cpu and training.gpu_only)]
    for argument, cases in (("layer", LAYERS), ("model", MODELS), ("training", trainings)):
        if argument in metafunc.fixturenames:
            ids = [case.name.replace(" ", "-") for case in cases]
            metafunc.parametrize(argument, cases, ids=ids)
    if "dtype" in metafunc.fixturenames:
        dtypes = chosen_dtypes(metafunc.config)
        metafunc.parametrize("dtype", [getattr(torch, name) for name in dtypes], ids=dtypes)
