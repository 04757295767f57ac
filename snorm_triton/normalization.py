"""W / sigma(W) of one weight or many, as eager mode computes it: operations, then a node."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from . import eager
from .autograd import Estimate, outer, rescaled
from .dispatch import Operations, operations
from .eager import in_dtype_of, nonzero
from .matrix_view import MatrixView, in_matrix_layout

R = TypeVar("R")

BUCKET_BYTES = 25 * 2**20  # of weights; as DistributedDataParallel's buckets of gradients


class SpectralNormalized(NamedTuple):
    """What :func:`spectral_normalize` returns; ``weight_sn`` and ``sigma`` are differentiable."""

    weight_sn: Tensor
    u: Tensor
    v: Tensor
    sigma: Tensor


class Request(NamedTuple):
    """The arguments of ``functional.spectral_normalize``, known to be right, and what a module
    adds.
    """

    weight: Tensor
    u: Tensor
    v: Tensor
    dim: int
    n_power_iterations: int
    eps: float
    dtype: torch.dtype
    backend: str
    buffers: tuple[Tensor, ...] = ()  # overwritten with the new state: none, or (u, v, sigma)
    sigma: Tensor | None = None  # to be taken as it is, with u and v
    due: Tensor | None = None  # iterate only where this is not zero, and then make it zero


def normalize(request: Request) -> SpectralNormalized:
    """W / sigma, and the u, v and sigma it took; sigma of a real weight has no gradient."""
    weight, dim, dtype = request.weight, request.dim, request.dtype
    if weight.numel() == 0:
        u, v = request.u, request.v
        return SpectralNormalized((weight * 1).to(dtype), u, v, u.new_zeros(()))
    ops = operations(weight, request.backend)
    dense, view = in_matrix_layout(weight, dim)
    operation = ops.normalize if request.sigma is None else ops.replay
    call = _call(request, dense, view)
    weight_sn, u, v, sigma = without_autocast(weight.device.type, operation, *call)
    if torch.is_grad_enabled() and weight.requires_grad:
        if weight.is_complex():
            weight_sn, sigma = rescale_in_torch(weight, u, v, dim, dtype)
        else:
            estimate = Estimate(dense, dense._version, view, dim, u, v, sigma)
            (weight_sn,) = rescaled(ops, (estimate,), (weight_sn,))
    return SpectralNormalized(weight_sn, u, v, sigma)


def normalize_together(
    requests: Sequence[Request], apart: bool = False
) -> list[SpectralNormalized]:
    """As :func:`normalize` of each, in as few launches and autograd nodes as can be.

    On a GPU one power iteration of any number of weights, of one device and dtype, is three
    launches, their evaluation two, their replay one. Their gradients come in buckets of up to
    ``BUCKET_BYTES``, so that the first need not wait for all. Results share memory, unless they
    must lie ``apart``.
    """
    results: dict[int, SpectralNormalized] = {}
    groups: dict[tuple[Operations, torch.device, bool], list[int]] = {}
    for i, request in enumerate(requests):
        weight = request.weight
        if weight.numel() == 0 or weight.is_complex():
            results[i] = normalize(request)
        else:
            kind = (operations(weight, request.backend), weight.device, request.sigma is None)
            groups.setdefault(kind, []).append(i)
    for (ops, device, is_new), members in groups.items():
        places = [in_matrix_layout(requests[i].weight, requests[i].dim) for i in members]
        calls = [_call(requests[i], *place) for i, place in zip(members, places, strict=True)]
        operation = ops.foreach_normalize if is_new else ops.foreach_replay
        outputs = without_autocast(device.type, operation, calls, apart)
        differentiable = []
        for i, (dense, view), output in zip(members, places, outputs, strict=True):
            results[i] = SpectralNormalized(*output)
            if torch.is_grad_enabled() and requests[i].weight.requires_grad:
                estimate = Estimate(dense, dense._version, view, requests[i].dim, *output[1:])
                differentiable.append((i, estimate))
        for bucket in _buckets(differentiable):
            estimates = [estimate for _, estimate in bucket]
            weights_sn = rescaled(ops, estimates, [results[i].weight_sn for i, _ in bucket])
            for (i, _), weight_sn in zip(bucket, weights_sn, strict=True):
                results[i] = results[i]._replace(weight_sn=weight_sn)
    return [results[i] for i in range(len(requests))]


def _buckets(members: Sequence[tuple[int, Estimate]]) -> Iterator[Sequence[tuple[int, Estimate]]]:
    """Neighbours of up to ``BUCKET_BYTES`` together."""
    start, size = 0, 0
    for end, (_, estimate) in enumerate(members):
        nbytes = estimate.weight.nbytes
        if size and size + nbytes > BUCKET_BYTES:
            yield members[start:end]
            start, size = end, 0
        size += nbytes
    if members:
        yield members[start:]


def _call(request: Request, dense: Tensor, view: MatrixView) -> tuple[Any, ...]:
    """The arguments of ``Operations.normalize``, or ``replay``: no gradient is taken of them."""
    _, u, v, _, n_power_iterations, eps, dtype, _, buffers, sigma, _ = request
    if sigma is not None:
        return dense.detach(), view, u, v, sigma, dtype
    return dense.detach(), view, u, v, n_power_iterations, eps, dtype, buffers


def without_autocast(device_type: str, operation: Callable[..., R], *args: Any) -> R:
    """``operation(*args)`` in the dtypes of its arguments, whatever autocast says."""
    if (
        torch._C._is_any_autocast_enabled()
        and torch.amp.is_autocast_available(device_type)
        and torch.is_autocast_enabled(device_type)
    ):
        with torch.autocast(device_type, enabled=False):
            return operation(*args)
    return operation(*args)


def rescale_in_torch(
    weight: Tensor, u: Tensor, v: Tensor, dim: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """``W / sigma`` and ``sigma = u^H W v`` in torch's own differentiable operations."""
    wide = in_dtype_of(weight, u)
    sigma = (outer(u.conj(), v, weight.shape, dim) * wide).sum()
    return (wide / nonzero(sigma)).to(dtype), sigma


def normalize_in_torch(request: Request) -> SpectralNormalized:
    """As :func:`normalize` in torch's own differentiable operations alone, which anything takes."""
    weight, u, v, dim = request.weight, request.u, request.v, request.dim
    if weight.numel() == 0:
        return normalize(request)
    if request.sigma is None:
        matrix = in_dtype_of(weight.detach(), u).movedim(dim, 0).flatten(1).contiguous()
        view, device_type = MatrixView(1, *matrix.shape), weight.device.type
        if (n := request.n_power_iterations) > 0:
            state = without_autocast(device_type, eager.power_step, matrix, view, u, v, n)
        else:
            state = without_autocast(device_type, eager.estimate, matrix, view, u, v, request.eps)
        u, v, sigma = state
        for buffer, value in zip(reversed(request.buffers), (sigma, v, u), strict=False):
            buffer.copy_(value.abs() if buffer.ndim == 0 else value)
    weight_sn, sigma = rescale_in_torch(weight, u, v, dim, request.dtype)
    return SpectralNormalized(weight_sn, u, v, sigma)
