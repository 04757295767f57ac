"""Eager mode: what the backend computes, of one weight or many, made a node of the graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...torch_internals.autograd import foreach_copy_
from ..autograd import Rescale, buckets, scales_of
from ..backend import Backend
from ..calls import Access, Call, Evaluate, Iterate, Normalized, Replay, Step
from ..dispatch import backend_for, place
from ..estimates import Estimate
from ..matrix_view import MatrixView, view_of
from ..rescaling import Rescaling
from ..state import write as write
from .composite import rescale, without_autocast


def normalize(access: Access) -> Normalized:
    """W / sigma, and the u, v and sigma it took; sigma of a real weight has no gradient."""
    weight, u, v, dim, step, dtype, name, rescaling = access
    if weight.numel() == 0:
        return Normalized((weight * 1).to(dtype), u, v, u.new_zeros(()))
    taken, placed = (u, v, dim, step, dtype, rescaling), place(weight, dim, name)
    return without_autocast(weight.device.type, _normalize, weight, taken, placed)


MakeAgain = Callable[[Tensor, Tensor, Tensor, Tensor, bool], Normalized]
"""W / sigma of a weight of one kind, of its live u, v and sigma.

They are replayed if the last says so; else they iterate, and are overwritten.
"""


def repeated(access: Access, n: int) -> MakeAgain | None:
    """What makes an access that iterates ``n`` times, or replays, again, where no autocast is on.

    None where it evaluates, and where the weight has to be made dense each time.
    """
    weight, _, _, dim, step, dtype, name, rescaling = access
    view = view_of(weight.shape, weight.stride(), dim)
    if isinstance(step, Evaluate) or view is None:
        return None
    backend = backend_for(weight, name)

    def make(weight: Tensor, u: Tensor, v: Tensor, sigma: Tensor, replays: bool) -> Normalized:
        data, live = weight.detach(), (u, v, sigma)
        step = Replay(sigma) if replays else Iterate(n, live)
        made = backend.normalize(data, view, u, v, step, dtype, rescaling)
        weight_sn, u, v, sigma, is_written = made
        if weight.requires_grad:
            estimate = Estimate(data, data._version, view, dim, u, v, sigma, rescaling)
            Rescale.apply((backend, (estimate,), (weight_sn,)), weight)
        if not (is_written or replays):
            foreach_copy_(live, (u, v, sigma))
        return made

    return make


def _normalize(
    weight: Tensor,
    taken: tuple[Tensor, Tensor, int, Step, torch.dtype, Rescaling],
    placed: tuple[Backend, Tensor, MatrixView],
) -> Normalized:
    """As :func:`normalize`, with what an access has behind its weight, and what ``place`` says."""
    u, v, dim, step, dtype, rescaling = taken
    backend, dense, view = placed
    data, learns = dense.detach(), rescaling.learned is not None
    constant = rescaling.detached() if learns else rescaling
    normalized = backend.normalize(data, view, u, v, step, dtype, constant)
    if not (torch.is_grad_enabled() and (weight.requires_grad or rescaling.requires_grad)):
        return normalized
    weight_sn, u, v, sigma, is_written = normalized
    if weight.is_complex():
        weight_sn, sigma = rescale(weight, u, v, dim, dtype, rescaling)
        return Normalized(weight_sn, u, v, sigma, is_written)
    of_scale = rescaling.version if learns else 0
    estimate = Estimate(data, data._version, view, dim, u, v, sigma, rescaling, of_scale)
    computed = backend, (estimate,), (weight_sn,)
    # Its output is weight_sn itself, which is differentiable from here on.
    if learns:
        Rescale.apply(computed, dense, rescaling.learned)
    else:
        Rescale.apply(computed, dense)
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
