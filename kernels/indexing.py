"""Where a matrix element lies, and exact scaling: what every kernel shares."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def multiple(n, FACTOR: tl.constexpr):
    """The largest multiple of FACTOR up to n, and the compiler knows that FACTOR divides it."""
    return n // FACTOR * FACTOR


@triton.jit
def weight_offset(m, n, M, N, Q, PLAIN: tl.constexpr):
    """The element W[m, n] in memory, n a memory column; PLAIN says that P = 1. int64."""
    if PLAIN:
        return m.to(tl.int64) * N + n
    else:
        return ((n // Q).to(tl.int64) * M + m) * Q + n % Q


@triton.jit
def logical_column(n, C, K):
    """The logical column of memory column n: memory holds (A, K, C), torch (A, C, K)."""
    run = n % (K * C)
    return n - run + (run % C) * K + run // C


@triton.jit
def power_of_two(x):
    """The largest power of two up to x >= 0, kept where its reciprocal is a normal number too.

    Scaling by it loses nothing, so scaled sums round as unscaled ones would.
    """
    if x.dtype == tl.float64:
        bits = x.to(tl.int64, bitcast=True) & 0x7FF0000000000000
        bits = tl.minimum(tl.maximum(bits, 0x0010000000000000), 0x7FD0000000000000)
        return bits.to(tl.float64, bitcast=True)
    else:
        bits = x.to(tl.int32, bitcast=True) & 0x7F800000
        bits = tl.minimum(tl.maximum(bits, 0x00800000), 0x7E800000)
        return bits.to(tl.float32, bitcast=True)


@triton.jit
def reciprocal_of_power(x):
    """1 / x exactly, for x from ``power_of_two``."""
    if x.dtype == tl.float64:
        bits = 0x7FE0000000000000 - x.to(tl.int64, bitcast=True)
        return bits.to(tl.float64, bitcast=True)
    else:
        bits = 0x7F000000 - x.to(tl.int32, bitcast=True)
        return bits.to(tl.float32, bitcast=True)


@triton.jit
def reciprocal(x):
    """1 / x of few elements rounded to nearest: plain float32 division compiles to less."""
    if x.dtype == tl.float64:
        return 1.0 / x
    else:
        return tl.div_rn(tl.full([], 1.0, tl.float32), x)


@triton.jit
def reciprocal_at_least(norm, eps):
    """1 / max(norm, eps), where NaN stays NaN: a maximum on a GPU would drop it."""
    return reciprocal(tl.where(norm < eps, eps, norm).to(norm.dtype))


@triton.jit
def square_root(x):
    """The square root of few elements rounded to nearest, as for ``reciprocal``."""
    if x.dtype == tl.float64:
        return tl.sqrt(x)
    else:
        return tl.sqrt_rn(x)


@triton.jit
def divisor_of(sigma):
    """sigma, and 1 where it is below the smallest normal number: a zero weight stays zero."""
    if sigma.dtype == tl.float64:
        return tl.where(tl.abs(sigma) < 2.2250738585072014e-308, 1.0, sigma)
    else:
        return tl.where(tl.abs(sigma) < 1.1754943508222875e-38, 1.0, sigma)
