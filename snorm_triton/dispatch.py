"""Which backend computes a weight's normalization, and why."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from . import eager, host

BACKENDS = ("auto", "triton", "torch")
ENVIRONMENT_VARIABLE = "SNORM_TRITON_BACKEND"
DEFAULT_BACKEND = os.environ.get(ENVIRONMENT_VARIABLE, "")

_TRITON_DEVICES = ("cuda", "xpu")  # ROCm tensors say cuda
_TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Choice(NamedTuple):
    """A backend, "triton" or "torch", and the reason it was chosen, as a clause."""

    backend: str
    reason: str


class Operations(NamedTuple):
    """The operations every backend provides, with the signatures of :mod:`snorm_triton.eager`.

    The last three take a list of the arguments of the one of their name, of weights of one device,
    and return a list. The first two of these are told whether results must lie ``apart``, in
    storages of their own.
    """

    normalize: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
    replay: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
    rescale: Callable[..., Tensor]
    rescale_backward: Callable[..., Tensor]
    foreach_normalize: Callable[..., list[tuple[Tensor, Tensor, Tensor, Tensor]]]
    foreach_replay: Callable[..., list[tuple[Tensor, Tensor, Tensor, Tensor]]]
    foreach_rescale_backward: Callable[..., list[Tensor]]


def select(weight: Tensor, backend: str = "auto") -> Choice:
    """The backend for ``weight``, by its device, dtype and shape, and what is installed.

    Args:
        weight: the weight to normalize, any shape.
        backend: ``"triton"`` or ``"torch"`` to ask for one by name; ``"auto"`` takes the
            environment variable ``SNORM_TRITON_BACKEND`` where it was set at import, else Triton
            wherever it can run.

    Raises:
        ValueError: ``backend`` is not one of ``BACKENDS``, or is ``"triton"`` and cannot run here.
    """
    return _select(weight.device, weight.dtype, weight.ndim == 1, backend, DEFAULT_BACKEND)


@lru_cache(maxsize=256)
def _select(
    device: torch.device, dtype: torch.dtype, is_vector: bool, backend: str, default: str
) -> Choice:
    source = "backend"
    if backend == "auto" and default:
        backend, source = default, ENVIRONMENT_VARIABLE
    if backend not in BACKENDS:
        raise ValueError(f"{source} must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "torch":
        return Choice("torch", f"asked for by {source}")
    refusal = _triton_refusal(device, dtype, is_vector, forced=backend == "triton")
    if backend == "triton":
        if refusal is not None:
            raise ValueError(f"{source}='triton' cannot run: {refusal}")
        return Choice("triton", f"asked for by {source}")
    if refusal is not None:
        return Choice("torch", refusal)
    return Choice("triton", f"a {dtype} weight on {device.type}")


SHARDED = "the weight is sharded: torch multiplies with the shards and sums over the ranks"


def is_sharded(weight: Tensor) -> bool:
    """Whether ``weight`` is a DTensor; does not import what that is, which takes most of a second.

    A plain tensor is told by its type alone.
    """
    if type(weight) in (Tensor, Parameter):
        return False
    tensor = sys.modules.get("torch.distributed.tensor")
    return tensor is not None and isinstance(weight, tensor.DTensor)


def operations(weight: Tensor, backend: str = "auto") -> Operations:
    """Those of the backend that :func:`select` chooses; Triton is imported here at last."""
    return _operations(weight.device, weight.dtype, type(weight), backend, DEFAULT_BACKEND)


@lru_cache(maxsize=256)
def _operations(
    device: torch.device, dtype: torch.dtype, kind: type[Tensor], backend: str, default: str
) -> Operations:
    if _select(device, dtype, False, backend, default).backend == "triton":
        return _triton_operations()
    return _HOST if host.takes(device, dtype, kind) else _EAGER


def _one_by_one(operations: ModuleType) -> Operations:
    """A backend with no better way to take many weights."""

    def each(operation: Callable[..., Any]) -> Callable[..., list[Any]]:
        return lambda calls, apart=True: [operation(*call) for call in calls]

    return Operations(
        operations.normalize,
        operations.replay,
        operations.rescale,
        operations.rescale_backward,
        each(operations.normalize),
        each(operations.replay),
        each(operations.rescale_backward),
    )


_EAGER = _one_by_one(eager)
_HOST = _one_by_one(host)


@lru_cache(maxsize=1)
def _triton_operations() -> Operations:
    from .kernels.gradient import rescale_backward
    from .kernels.normalize import normalize
    from .kernels.rescale import replay, rescale
    from .kernels.together import foreach_normalize, foreach_replay
    from .kernels.together_backward import foreach_rescale_backward

    return Operations(
        normalize,
        replay,
        rescale,
        rescale_backward,
        foreach_normalize,
        foreach_replay,
        foreach_rescale_backward,
    )


def _triton_refusal(
    device: torch.device, dtype: torch.dtype, is_vector: bool, forced: bool
) -> str | None:
    """Why Triton cannot take such a weight, or None where it can."""
    if is_vector:
        return "a 1-D weight is divided by its L2 norm, which torch does"
    if dtype not in _TRITON_DTYPES:
        return f"the kernels do not take {dtype}"
    if find_spec("triton") is None:
        return "triton is not installed"
    if device.type in _TRITON_DEVICES:
        return _import_refusal() or _device_refusal(device)
    if device.type != "cpu":
        return f"Triton has no {device.type} backend here"
    # The interpreter is for testing: it serves who asks for it by name, never who left it to us.
    if forced:
        refusal = _import_refusal()
        if refusal is not None or _interpreted():
            return refusal
    return "the weight is on the CPU (the Triton interpreter needs TRITON_INTERPRET=1)"


def _import_refusal() -> str | None:
    """Why what is installed of Triton is of no use; imports it."""
    try:
        _interpreted()  # which older ones cannot say
        _triton_operations()
    # Whatever a broken installation raises: a missing library, an old LLVM, a half-written file.
    except Exception as error:
        return f"triton cannot be used ({type(error).__name__}: {error})"
    return None


def _interpreted() -> bool:
    import triton

    return bool(triton.knobs.runtime.interpret)


def _device_refusal(device: torch.device) -> str | None:
    if device.type == "cuda" and torch.version.hip is None:
        major, minor = torch.cuda.get_device_capability(device)
        if major < 8:
            return f"compute capability {major}.{minor} is below 8.0, which the kernels need"
    return None
