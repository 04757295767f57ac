"""Eager mode: what the backend computes, of one weight or many, made a node of the graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from ..autograd import Estimate, rescaled
from ..backend import Backend
from ..calls import Access, Call, Normalized, Replay
from ..dispatch import backend_for
from ..matrix_view import in_matrix_layout
from .composite import rescale, without_autocast

BUCKET_BYTES = 25 * 2**20  # of weights; as DistributedDataParallel's buckets of gradients


def normalize(access: Access) -> Normalized:
    """W / sigma, and the u, v and sigma it took; sigma of a real weight has no gradient."""
    weight, u, v, dim, step, dtype, name, _ = access
    if weight.numel() == 0:
        return Normalized((weight * 1).to(dtype), u, v, u.new_zeros(()))
    backend = backend_for(weight, name)
    dense, view = in_matrix_layout(weight, dim)
    call = Call(dense.detach(), view, u, v, step, dtype)
    (normalized,) = without_autocast(weight.device.type, backend.normalize, (call,))
    if not (torch.is_grad_enabled() and weight.requires_grad):
        return normalized
    weight_sn, u, v, sigma, is_written = normalized
    if weight.is_complex():
        weight_sn, sigma = rescale(weight, u, v, dim, dtype)
    else:
        estimate = Estimate(dense, dense._version, view, dim, u, v, sigma)
        (weight_sn,) = rescaled(backend, (estimate,), (weight_sn,))
    return Normalized(weight_sn, u, v, sigma, is_written)


def normalize_together(accesses: Sequence[Access], apart: bool = False) -> list[Normalized]:
    """As :func:`normalize` of each, in as few launches and autograd nodes as can be.

    On a GPU one power iteration of any number of weights, of one device and dtype, is three
    launches, their evaluation two, their replay one. Their gradients come in buckets of up to
    ``BUCKET_BYTES``, so that the first need not wait for all. Results share memory, unless they
    must lie ``apart``.
    """
    results: dict[int, Normalized] = {}
    groups: dict[tuple[Backend, torch.device, bool], list[int]] = {}
    for i, access in enumerate(accesses):
        weight = access.weight
        if weight.numel() == 0 or weight.is_complex():
            results[i] = normalize(access)
        else:
            is_replay = isinstance(access.step, Replay)
            kind = backend_for(weight, access.backend), weight.device, is_replay
            groups.setdefault(kind, []).append(i)
    for (backend, device, _), members in groups.items():
        chosen = [accesses[i] for i in members]
        places = [in_matrix_layout(access.weight, access.dim) for access in chosen]
        calls = [
            Call(dense.detach(), view, access.u, access.v, access.step, access.dtype)
            for access, (dense, view) in zip(chosen, places, strict=True)
        ]
        outputs = without_autocast(device.type, backend.normalize, calls, apart)
        results.update(zip(members, outputs, strict=True))
        estimates = [
            (i, Estimate(dense, dense._version, view, access.dim, *output[1:4]))
            for i, access, (dense, view), output in zip(
                members, chosen, places, outputs, strict=True
            )
            if torch.is_grad_enabled() and access.weight.requires_grad
        ]
        for bucket in _buckets(estimates):
            weights_sn = rescaled(
                backend, [each for _, each in bucket], [results[i].weight_sn for i, _ in bucket]
            )
            for (i, _), weight_sn in zip(bucket, weights_sn, strict=True):
                results[i] = results[i]._replace(weight_sn=weight_sn)
    return [results[i] for i in range(len(accesses))]


def _buckets(members: Sequence[tuple[int, Estimate]]) -> Iterator[Sequence[tuple[int, Estimate]]]:
    """Neighbors of up to ``BUCKET_BYTES`` together."""
    start, size = 0, 0
    for end, (_, estimate) in enumerate(members):
        nbytes = estimate.weight.nbytes
        if size and size + nbytes > BUCKET_BYTES:
            yield members[start:end]
            start, size = end, 0
        size += nbytes
    if members:
        yield members[start:]
