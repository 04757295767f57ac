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
# Of a sum in float32 at most, which a library takes one after another across lines of memory, in
# several parts of a batch, and in many along a line: beyond, what counts is lost.
SUMMANDS, BATCHED, ALONG = 2**8, 2**11, 2**16
CACHE = 32 * 2**20  # bytes that the processors' shared cache may hold


def product(operand: Tensor, v: Tensor) -> Tensor:
    """``W v``, for ``v`` of shape (N,) in memory column order."""
    if is_whole(operand, v.dtype):
        if operand.ndim == 3:
            return matvec(operand, v)
        if not operand.is_contiguous():
            return _across(operand.mT, v)
        # A matrix of one row a library may take for one column.
        return torch.dot(operand[0], v).view(1) if len(operand) == 1 else torch.mv(operand, v)
    t = v.new_zeros(operand.shape[-2], dtype=torch.float64)
    for tile, rows, columns in tiles(operand):
        t[rows] += product(operand[tile].to(v.dtype), v[columns])
    return t.to(v.dtype)


def transposed_product(operand: Tensor, u: Tensor) -> Tensor:
    """``W^T u`` in memory column order, for ``u`` of shape (M,)."""
    if is_whole(operand, u.dtype):
        if operand.ndim == 3:
            return matvec_transposed(operand, u)
        return _across(operand, u) if operand.is_contiguous() else torch.mv(operand.mT, u)
    s = u.new_zeros(operand.numel() // len(u), dtype=torch.float64)
    for tile, rows, columns in tiles(operand):
        s[columns] += transposed_product(operand[tile].to(u.dtype), u[rows])
    return s.to(u.dtype)


def both_products(operand: Tensor, v: Tensor) -> tuple[Tensor, Tensor] | None:
    """``W v`` and ``W^T W v`` of one reading; None where that is no gain or rows are too long."""
    is_whole = operand.dtype == v.dtype and operand.nbytes <= CACHE
    if is_whole or operand.ndim != 2 or not operand.is_contiguous() or operand.shape[1] > ALONG:
        return None
    t, sums, taken = v.new_empty(len(operand)), [torch.zeros_like(v)], 0
    for tile, rows, _ in tiles(operand):
        block = operand[tile].to(v.dtype)
        torch.mv(block, v, out=t[rows])
        taken += len(block)
        if taken <= SUMMANDS:
            sums[-1].addmv_(block.mT, t[rows])
        else:
            sums.append(_across(block, t[rows]))
            taken = len(block)
    return t, torch.stack(sums).double().sum(0).to(v.dtype)


def is_whole(operand: Tensor, dtype: torch.dtype) -> bool:
    """Whether products in ``dtype`` need not be taken of a tile at a time."""
    if operand.dtype != dtype:
        return False
    if operand.ndim == 3:
        return operand.shape[1] <= BATCHED and operand.shape[2] <= ALONG
    return operand.shape[operand.is_contiguous()] <= ALONG


def _across(lines: Tensor, x: Tensor) -> Tensor:
    """``x^T`` times a matrix whose rows are contiguous."""
    count, size = lines.shape
    if count <= SUMMANDS:
        return torch.mv(lines.mT, x)
    end = count // SUMMANDS * SUMMANDS
    parts = lines[:end].view(-1, SUMMANDS, size)
    total = torch.bmm(x[:end].view(-1, 1, SUMMANDS), parts).double().sum(0).view(-1)
    if end < count:
        total += torch.mv(lines[end:].mT, x[end:])
    return total.to(x.dtype)


def tiles(operand: Tensor) -> Iterator[tuple[Any, slice, slice]]:
    """Neighbors in memory: where they are in the operand, which rows and which columns."""
    P, M, Q = operand.shape if operand.ndim == 3 else (1, *operand.shape)
    if operand.is_contiguous():
        q_size = min(Q, ALONG)
        m_size = min(M, max(1, ELEMENTS // q_size), BATCHED if P > 1 else ELEMENTS)
    else:  # a matrix whose columns are contiguous
        m_size = min(M, ALONG)
        q_size = min(Q, max(1, ELEMENTS // m_size))
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
