"""The layer kinds, backends and oracles that the tests share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from worlds import World

# cuBLAS is deterministic, as `nan_filled_memory` asks of it, only with a workspace of its own.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def pytest_addoption(parser: pytest.Parser) -> None:
    # Here, because a folder's own conftest.py is too late for it.
    parser.addoption(
        "--compatibility", type=Path, help="write the table of tests/compatibility to this file"
    )


@dataclass(frozen=True)
class LayerKind:
    """A layer, an input for it, and the parameter to normalize."""

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    parameter: str = "weight"

    def run(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        output = module(*inputs)
        return output[0] if isinstance(output, tuple) else output


def channels_last(module: nn.Module) -> nn.Module:
    is_3d = module.weight.ndim == 5
    return module.to(memory_format=torch.channels_last_3d if is_3d else torch.channels_last)


def randn(*shape: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randn(shape),)


def tokens() -> tuple[Tensor, ...]:
    return (torch.randint(0, 11, (5,)),)


def sequence(width: int) -> Callable[[], tuple[Tensor, ...]]:
    def inputs() -> tuple[Tensor, ...]:
        x = torch.randn(3, 2, width)
        return x, x, x

    return inputs


LAYER_KINDS = [
    LayerKind("Linear", lambda: nn.Linear(7, 5), randn(4, 7)),
    LayerKind("Conv1d", lambda: nn.Conv1d(6, 9, 5), randn(2, 6, 11)),
    LayerKind("Conv1d groups", lambda: nn.Conv1d(6, 9, 5, groups=3), randn(2, 6, 11)),
    LayerKind("Conv2d", lambda: nn.Conv2d(3, 5, 3), randn(2, 3, 6, 7)),
    LayerKind("Conv2d depthwise", lambda: nn.Conv2d(4, 8, 3, groups=4), randn(2, 4, 6, 7)),
    LayerKind("Conv2d channels_last", lambda: channels_last(nn.Conv2d(3, 5, 3)), randn(2, 3, 6, 7)),
    LayerKind("Conv3d", lambda: nn.Conv3d(2, 5, (1, 2, 3)), randn(2, 2, 4, 4, 5)),
    LayerKind(
        "Conv3d channels_last",
        lambda: channels_last(nn.Conv3d(2, 5, (1, 2, 3))),
        randn(2, 2, 4, 4, 5),
    ),
    LayerKind("ConvTranspose1d", lambda: nn.ConvTranspose1d(6, 5, 4), randn(2, 6, 7)),
    LayerKind("ConvTranspose2d", lambda: nn.ConvTranspose2d(4, 5, 3), randn(2, 4, 5, 6)),
    LayerKind(
        "ConvTranspose2d groups", lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), randn(2, 4, 5, 6)
    ),
    LayerKind(
        "ConvTranspose2d channels_last",
        lambda: channels_last(nn.ConvTranspose2d(4, 5, 3)),
        randn(2, 4, 5, 6),
    ),
    LayerKind("ConvTranspose3d", lambda: nn.ConvTranspose3d(3, 4, 2), randn(2, 3, 3, 4, 3)),
    LayerKind("Embedding", lambda: nn.Embedding(11, 6), tokens),
    LayerKind("Bilinear", lambda: nn.Bilinear(3, 4, 5), lambda: (*randn(2, 3)(), *randn(2, 4)())),
    LayerKind("LSTM weight_hh_l0", lambda: nn.LSTM(4, 3), randn(5, 2, 4), "weight_hh_l0"),
    LayerKind(
        "MultiheadAttention in_proj_weight",
        lambda: nn.MultiheadAttention(8, 2),
        sequence(8),
        "in_proj_weight",
    ),
]

LAZY_KINDS = [
    LayerKind("LazyLinear", lambda: nn.LazyLinear(5), randn(4, 7)),
    LayerKind("LazyConv1d", lambda: nn.LazyConv1d(5, 3), randn(2, 6, 7)),
    LayerKind("LazyConv2d", lambda: nn.LazyConv2d(5, 3), randn(2, 3, 6, 7)),
    LayerKind("LazyConv3d", lambda: nn.LazyConv3d(5, 2), randn(2, 2, 4, 4, 5)),
    LayerKind("LazyConvTranspose1d", lambda: nn.LazyConvTranspose1d(5, 3), randn(2, 6, 7)),
    LayerKind("LazyConvTranspose2d", lambda: nn.LazyConvTranspose2d(5, 3), randn(2, 3, 6, 7)),
    LayerKind("LazyConvTranspose3d", lambda: nn.LazyConvTranspose3d(5, 2), randn(2, 2, 4, 4, 5)),
]


def identify(kind: LayerKind) -> str:
    return kind.name.replace(" ", "-")


@pytest.fixture(params=LAYER_KINDS, ids=identify)
def layer_kind(request: pytest.FixtureRequest) -> LayerKind:
    return request.param


@pytest.fixture(params=LAZY_KINDS, ids=identify)
def lazy_kind(request: pytest.FixtureRequest) -> LayerKind:
    return request.param


# The interpreter computes with numpy, which warns of the NaN and infinity that IEEE arithmetic
# gives.
INTERPRETED = (
    pytest.mark.interpreted,
    pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning"),
)


if os.environ.get("TRITON_INTERPRET") == "1":
    # Its time is that of the programs, whatever they hold: rather few with large tiles.
    from snorm_triton.kernels import config

    config.FEWEST_ROWS = 16

# What torch says of itself on a GPU, of any code.
TORCH_WARNS_ON_GPU = (
    # cuDNN, of any LSTM whose weights are computed
    "ignore:RNN module weights:UserWarning",
    # the first product of a thread, such as autograd's
    "ignore:Attempting to run cuBLAS, but there was no current CUDA context:UserWarning",
    # inductor, which captures a graph of nothing for the memory that its others share
    "ignore:The CUDA Graph is empty:UserWarning",
    # inductor, where float32 is computed in float32
    "ignore:TensorFloat32 tensor cores:UserWarning",
)
# The kernels take a small weight in one launch, and by another way in several: the tests, whose
# weights are small, run both.
BACKENDS = [
    "torch",
    pytest.param("triton", marks=INTERPRETED, id="triton"),
    pytest.param("triton large", marks=INTERPRETED, id="triton-large"),
    pytest.param("gpu", marks=pytest.mark.gpu, id="triton-on-gpu"),
    pytest.param("gpu large", marks=pytest.mark.gpu, id="triton-large-on-gpu"),
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu"):
            for warning in TORCH_WARNS_ON_GPU:
                item.add_marker(pytest.mark.filterwarnings(warning))


@pytest.fixture(autouse=True)
def exact_convolutions(request: pytest.FixtureRequest) -> Iterator[None]:
    """On a GPU convolutions are those of float32, and the same at every call."""
    if request.node.get_closest_marker("gpu") is None:
        yield
        return
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


@pytest.fixture
def cuda() -> torch.device:
    """For what other accelerators do not have: streams to capture, replicas."""
    if not torch.cuda.is_available():
        pytest.skip("only CUDA and ROCm have what this test uses")
    return torch.device("cuda")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """torch on the CPU; the kernels interpreted there; the kernels on a GPU, all tensors there."""
    if "large" in request.param:
        monkeypatch.setattr("snorm_triton.kernels.config.SMALL", 0)
    if "gpu" not in request.param:
        yield request.param.removesuffix(" large")
        return
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        pytest.fail("the tests marked gpu need a GPU that torch can use")
    torch.set_default_device(device)
    try:
        torch.manual_seed(0)
        yield "triton"
    finally:
        torch.set_default_device(None)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def launches_of_its_own() -> None:
    """A test may have changed what they are set up by."""
    launch = sys.modules.get("snorm_triton.kernels.launch")
    if launch is not None:
        launch.forget()


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[World]:
    world = World(2)
    yield world
    world.stop()


@pytest.fixture(scope="session")
def four_ranks() -> Iterator[World]:
    world = World(4)
    yield world
    world.stop()


@pytest.fixture
def nan_filled_memory() -> Iterator[None]:
    """Fresh memory holds NaN, so that an element nobody writes is seen."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.fixture
def relative_error() -> Callable[[Tensor, Tensor], float]:
    """|x - reference| / |reference| in float64; 0 where both are zero, infinity if not a number."""

    def measure(x: Tensor, reference: Tensor) -> float:
        x, reference = x.detach().double(), reference.detach().double()
        distance = (x - reference).norm()
        error = 0.0 if distance == 0 else float(distance / reference.norm())
        return float("inf") if isnan(error) else error

    return measure


@pytest.fixture
def report_line(record_property: Callable[[str, Any], None]) -> Callable[[str, str], None]:
    """Add a line to a table that the run prints at its end."""
    return lambda table, line: record_property(f"table {table}", line)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    tables: dict[str, list[str]] = {}
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for key, line in getattr(report, "user_properties", ()):
            if report.when == "call" and key.startswith("table "):
                tables.setdefault(key.removeprefix("table "), []).append(line)
    for title, lines in tables.items():
        terminalreporter.section(title)
        for line in sorted(lines):
            terminalreporter.line(line)
