"""Products with a matrix in the CPU's memory, a tile at a time where that is what it takes.

Half precision is widened in tiles that stay in cache, a weight that is larger than the cache is
read once for both products, and no sum in float32 gets longer than its digits last.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .torch_any_device import matvec, matvec_transposed

ELEMENTS = 2**18  # of a tile at most: 1 MiB of float32 stays in a processor's own cache
# Of a sum in float32 at most, which a library takes one after another across lines of memory, and
# in many parts along one: beyond, what counts is lost.
SUMMANDS = 2**10
ALONG = 2**16
CACHE = 32 * 2**20  # bytes that the processors' shared cache may hold


def is_whole(operand: Tensor, dtype: torch.dtype) -> bool:
    """Whether a library's products of the whole in ``dtype`` are as good, and faster."""
    if operand.dtype != dtype:
        return False
    m, q = _longest(operand)
    return operand.shape[-2] <= m and operand.shape[-1] <= q


def _longest(operand: Tensor) -> tuple[int, int]:
    """How many rows may be summed over, and how many columns, or of (P, M, Q) how many of Q."""
    if operand.is_contiguous():
        return SUMMANDS, ALONG if operand.shape[-2] > 1 else SUMMANDS
    return ALONG, SUMMANDS  # a matrix whose columns are contiguous


def fits_cache(operand: Tensor) -> bool:
    """Whether reading it twice costs the memory nothing."""
    return operand.nbytes <= CACHE


def product(operand: Tensor, v: Tensor) -> Tensor:
    """``W v``, for ``v`` of shape (N,) in memory column order."""
    if is_whole(operand, v.dtype):
        return matvec(operand, v)
    t = v.new_zeros(operand.shape[-2], dtype=torch.float64)
    for tile, rows, columns in tiles(operand):
        t[rows] += matvec(operand[tile].to(v.dtype), v[columns])
    return t.to(v.dtype)


def transposed_product(operand: Tensor, u: Tensor) -> Tensor:
    """``W^T u`` in memory column order, for ``u`` of shape (M,)."""
    if is_whole(operand, u.dtype):
        return matvec_transposed(operand, u)
    s = u.new_zeros(operand.numel() // len(u), dtype=torch.float64)
    for tile, rows, columns in tiles(operand):
        s[columns] += matvec_transposed(operand[tile].to(u.dtype), u[rows])
    return s.to(u.dtype)


def both_products(operand: Tensor, v: Tensor) -> tuple[Tensor, Tensor] | None:
    """``W v`` and ``W^T W v`` of one reading; None where that is no gain or rows are too long."""
    if operand.ndim != 2 or not operand.is_contiguous() or operand.shape[1] > _longest(operand)[1]:
        return None
    if is_whole(operand, v.dtype) and fits_cache(operand):
        return None
    t = v.new_empty(len(operand))
    sums: list[Tensor] = []
    for tile, rows, _ in tiles(operand):
        if rows.start >= len(sums) * SUMMANDS:
            sums.append(torch.zeros_like(v))
        block = operand[tile].to(v.dtype)
        torch.mv(block, v, out=t[rows])
        sums[-1].addmv_(block.mT, t[rows])
    return t, sums[0] if len(sums) == 1 else torch.stack(sums).double().sum(0).to(v.dtype)


def tiles(operand: Tensor) -> Iterator[tuple[Any, slice, slice]]:
    """Neighbors in memory: where they are in the operand, which rows and which columns."""
    P, M, Q = operand.shape if operand.ndim == 3 else (1, *operand.shape)
    m_size, q_size = map(min, (M, Q), _longest(operand))
    if operand.is_contiguous():
        m_size = min(m_size, max(1, ELEMENTS // q_size))
    else:
        q_size = min(q_size, max(1, ELEMENTS // m_size))
    p_size = max(1, ELEMENTS // (M * Q)) if (m_size, q_size) == (M, Q) else 1
    for p in range(0, P, p_size):
        for m in range(0, M, m_size):
            for q in range(0, Q, q_size):
                rows, part = slice(m, min(m + m_size, M)), slice(q, min(q + q_size, Q))
                if operand.ndim == 2:
                    yield (rows, part), rows, part
                else:
                    start, end = p * Q + part.start, (min(p + p_size, P) - 1) * Q + part.stop
                    yield (slice(p, p + p_size), rows, part), rows, slice(start, end)
