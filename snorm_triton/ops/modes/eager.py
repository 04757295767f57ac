"""Eager mode: what the backend computes, of one weight or many, made a node of the graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..autograd import Rescale, buckets, scales_of
from ..backend import Backend
from ..calls import Access, Call, Normalized, Replay
from ..dispatch import place
from ..estimates import Estimate
from ..state import write as write
from .composite import has_autocast, rescale, without_autocast


def normalize(access: Access) -> Normalized:
    """W / sigma, and the u, v and sigma it took; sigma of a real weight has no gradient."""
    weight, u, v, dim, step, dtype, name, rescaling = access
    if weight.numel() == 0:
        return Normalized((weight * 1).to(dtype), u, v, u.new_zeros(()))
    backend, dense, view = place(weight, dim, name)
    data, kind = dense.detach(), weight.device.type
    call = data, view, u, v, step, dtype, rescaling.detached()
    if has_autocast(kind) and torch.is_autocast_enabled(kind):
        normalized = without_autocast(kind, backend.normalize, *call)
    else:
        normalized = backend.normalize(*call)
    if not (torch.is_grad_enabled() and (weight.requires_grad or rescaling.requires_grad)):
        return normalized
    weight_sn, u, v, sigma, is_written = normalized
    if weight.is_complex():
        weight_sn, sigma = rescale(weight, u, v, dim, dtype, rescaling)
        return Normalized(weight_sn, u, v, sigma, is_written)
    taken = data, data._version, view, dim, u, v, sigma, rescaling, rescaling.version
    computed = backend, (Estimate(*taken),), (weight_sn,)
    # Its output is weight_sn itself, which is differentiable from here on.
    if rescaling.learned is None:
        Rescale.apply(computed, dense)
    else:
        Rescale.apply(computed, dense, rescaling.learned)
    return normalized


def normalize_together(accesses: Sequence[Access], apart: bool = False) -> list[Normalized]:
    """As :func:`normalize` of each, in as few launches and autograd nodes as can be.

    On a GPU one power iteration of any number of weights, of one device and dtype, is three
    launches, their evaluation two, their replay one. Results share memory, unless they must lie
    ``apart``.
    """
    results: dict[int, Normalized] = {}
    groups: dict[tuple[Backend, torch.device, bool], list[tuple[int, Tensor, Call]]] = {}
    for i, (weight, u, v, dim, step, dtype, name, rescaling) in enumerate(accesses):
        if weight.numel() == 0 or weight.is_complex():
            results[i] = normalize(accesses[i])
        else:
            backend, dense, view = place(weight, dim, name)
            kind = backend, weight.device, isinstance(step, Replay)
            call = Call(dense.detach(), view, u, v, step, dtype, rescaling.detached())
            groups.setdefault(kind, []).append((i, dense, call))
    for (backend, device, _), members in groups.items():
        calls = [call for _, _, call in members]
        outputs = without_autocast(device.type, backend.normalize_together, calls, apart)
        nodes = []
        for (i, dense, call), output in zip(members, outputs, strict=True):
            results[i], rescaling = output, accesses[i].rescaling
            if torch.is_grad_enabled() and (dense.requires_grad or rescaling.requires_grad):
                nodes.append((i, Estimate.of(call, accesses[i].dim, output, rescaling), dense))
        for bucket in buckets([estimate.weight.nbytes for _, estimate, _ in nodes]):
            at, estimates, weights = zip(*nodes[bucket], strict=True)
            weights_sn = [results[i].weight_sn for i in at]
            inputs = (*weights, *scales_of(estimates))
            weights_sn = Rescale.apply((backend, estimates, weights_sn), *inputs)
            for i, weight_sn in zip(at, weights_sn, strict=True):
                results[i] = results[i]._replace(weight_sn=weight_sn)
    return [results[i] for i in range(len(accesses))]
