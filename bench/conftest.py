from __future__ import annotations

import pytest
import torch

from bench.cases import CASES
from bench.device import find_gpu


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("snorm_triton")
    group.addoption("--device", help="where to measure; default: the GPU if there is one, else cpu")
    group.addoption("--seconds", type=float, help="for each benchmark; default: 9, on a GPU 2")
    group.addoption("--all-cases", action="store_true", help="on a CPU, the slow cases too")


def chosen_device(config: pytest.Config) -> torch.device:
    asked = config.getoption("--device")
    return torch.device(asked) if asked else find_gpu() or torch.device("cpu")


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    return chosen_device(pytestconfig)


@pytest.fixture(scope="session")
def seconds(pytestconfig: pytest.Config, device: torch.device) -> float:
    return pytestconfig.getoption("--seconds") or (9.0 if device.type == "cpu" else 2.0)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    on_cpu = chosen_device(metafunc.config).type == "cpu"
    every_case = not on_cpu or metafunc.config.getoption("--all-cases")
    cases = [case for case in CASES if every_case or not case.gpu_only]
    metafunc.parametrize("case", cases, ids=[case.name.replace(" ", "-") for case in cases])
    dtypes = [torch.float32] if on_cpu else [torch.float32, torch.bfloat16]
    metafunc.parametrize(
        "dtype", dtypes, ids=[str(dtype).removeprefix("torch.") for dtype in dtypes]
    )
