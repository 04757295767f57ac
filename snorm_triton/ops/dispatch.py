"""Which backend computes a weight's normalization, and why."""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from importlib.util import find_spec
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import Parameter

from . import torch_any_device, torch_cpu
from .backend import Backend
from .matrix_view import MatrixView, in_matrix_layout, view_of

BackendName = Literal["auto", "triton", "torch"]
BACKENDS = get_args(BackendName)
ENVIRONMENT_VARIABLE = "SNORM_TRITON_BACKEND"
DEFAULT_BACKEND = os.environ.get(ENVIRONMENT_VARIABLE, "")

_TRITON_DEVICES = ("cuda", "xpu")  # ROCm tensors say cuda
_TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Choice(NamedTuple):
    """A backend, "triton" or "torch", and the reason it was chosen, as a clause."""

    backend: str
    reason: str


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


def backend_for(weight: Tensor, backend: str = "auto") -> Backend:
    """What :func:`select` chooses; Triton is imported here at last."""
    return _backend_for(weight.device, weight.dtype, type(weight), backend, DEFAULT_BACKEND)


@lru_cache(maxsize=256)
def _backend_for(
    device: torch.device, dtype: torch.dtype, kind: type[Tensor], backend: str, default: str
) -> Backend:
    if _select(device, dtype, False, backend, default).backend == "triton":
        return _kernels()
    return torch_cpu if torch_cpu.takes(device, dtype, kind) else torch_any_device


def place(weight: Tensor, dim: int, backend: str) -> tuple[Backend, Tensor, MatrixView]:
    """What computes a weight of two dimensions or more, the weight made dense, and its view."""
    if weight.is_neg() or weight.is_conj():
        weight = weight.resolve_conj().resolve_neg()
    chosen, view = backend_for(weight, backend), view_of(weight.shape, weight.stride(), dim)
    if view is None:
        weight, view = in_matrix_layout(weight, dim)
    return chosen, weight, view


def _kernels() -> Backend:
    from ..kernels import backend

    return backend


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
        _kernels()
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
