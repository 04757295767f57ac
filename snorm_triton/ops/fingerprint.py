"""A sample of what plain CPU memory holds: a change through ``.data`` leaves no other trace."""

from __future__ import annotations

import ctypes

from torch import Tensor
from torch.nn import Parameter

from ..torch_internals.tracing import is_tracing

_PLACES = 16
_SMALL = 2**14  # bytes, which are read faster than that many places


def fingerprint(tensor: Tensor) -> bytes | None:
    """The bytes of a small plain CPU tensor, or some of a large one's; None of any other.

    Read without an operation. A large tensor that was drawn, scaled or replaced differs in them,
    one of which a few elements were set may not.
    """
    if tensor.device.type != "cpu" or type(tensor) not in (Tensor, Parameter) or is_tracing():
        return None
    size = tensor.element_size()
    try:
        storage, count = tensor.untyped_storage().data_ptr(), tensor.numel()
    except RuntimeError:  # of a transform, or a tensor that torch traces, which has no memory
        return None
    address = storage + int(tensor.storage_offset()) * size
    if storage == 0 or (not tensor.is_contiguous() and not _is_dense(tensor)):
        return None
    if count * size <= _SMALL:
        return ctypes.string_at(address, count * size)
    step = (count - 1) // (_PLACES - 1) * size
    return b"".join([ctypes.string_at(address + i * step, size) for i in range(_PLACES)])


def _is_dense(tensor: Tensor) -> bool:
    extent = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return extent == tensor.numel() - 1
