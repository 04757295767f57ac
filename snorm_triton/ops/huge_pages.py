"""Fresh memory for a large result on the CPU, in huge pages.

An allocation that the C library cannot serve from memory it kept comes from the system page by
page, each page zeroed at its first touch: for a result of 36 MiB that takes several times as long
as computing it. Pages of 2 MiB make it a fraction of that.
"""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

# Some pages of 2 MiB. glibc maps any allocation of 32 MiB afresh, and smaller ones now and then.
LARGE = 8 * 2**20
_PAGE = 4096
_MADV_HUGEPAGE = 14


def huge_pages_like(tensor: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Memory for a result laid out as the dense ``tensor``; None where torch's own is as good."""
    size = tensor.numel() * dtype.itemsize
    if size < LARGE or (madvise := _madvise()) is None:
        return None
    fresh = torch.empty_like(tensor, dtype=dtype)
    start = -(-fresh.data_ptr() // _PAGE) * _PAGE
    # It is advice: where the system does not take it, the pages stay small.
    madvise(start, (fresh.data_ptr() + size - start) // _PAGE * _PAGE, _MADV_HUGEPAGE)
    return fresh


@lru_cache(maxsize=1)
def _madvise() -> Any:
    """The C library's ``madvise`` on Linux, None elsewhere."""
    if sys.platform != "linux":
        return None
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return madvise
