"""How an access to a weight ``g v / |v|`` is computed, of one weight or many.

Salimans and Kingma (2016, arXiv 1602.07868).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from ..torch_internals import functorch
from ..torch_internals.checkpoints import unseen
from ..torch_internals.parametrize import fused_weight_norm
from ..torch_internals.storage import version
from ..torch_internals.tracing import is_tracing
from . import dispatch, recomputation, torch_cpu, torch_row_scaling
from .autograd import buckets
from .backend import Backend
from .dispatch import backend_for
from .matrix_view import MatrixView
from .modes.composite import without_autocast
from .row_scaling import RowScaling
from .row_scaling_nodes import ScaleRows, ScaleRowsOfMany
from .scaled import Scaled
from .torch_cpu_row_scaling import HAS_FUSED, all_regular

PLAIN = (Tensor, Parameter)


class WeightNormAccess(NamedTuple):
    """One access to v and g: ``dim`` is that of the rows, None for all; ``dtype`` the result's."""

    weight: Tensor
    g: Tensor
    dim: int | None
    dtype: torch.dtype
    backend: str = "auto"


Placed = tuple[WeightNormAccess, Tensor, MatrixView]  # with the weight made dense, and its view


def normalize(access: WeightNormAccess) -> Tensor:
    """``g v / |v|``, of the weight's shape and memory layout."""
    return normalized(*access)


def normalized(
    weight: Tensor, g: Tensor, dim: int | None, dtype: torch.dtype, name: str = "auto"
) -> Tensor:
    """As :func:`normalize`, of a :class:`WeightNormAccess` that is none yet."""
    if is_composite(weight, g):
        return without_autocast(
            weight.device.type, torch_row_scaling.weight_norm, weight, g, dim, dtype
        )
    # Inside of a checkpoint nothing is saved or seen, as of a weight that was prepared before it.
    if recomputation.is_possible():
        with unseen():
            return _by_node(weight, g, dim, dtype, name)
    if backend_for(weight, name) is torch_cpu:
        fused = _fused(weight, g, dim, dtype)
        if fused is not None:
            return fused
    return _by_node(weight, g, dim, dtype, name)


def _by_node(weight: Tensor, g: Tensor, dim: int | None, dtype: torch.dtype, name: str) -> Tensor:
    backend, dense, view = place(weight, dim, name)
    scaled: Tensor = ScaleRows.apply(backend, view, dim, dtype, dense, g)
    return scaled


def normalize_together(accesses: Sequence[WeightNormAccess]) -> list[Tensor]:
    """As :func:`normalize` of each; on a GPU those of one device in one launch each way."""
    results: dict[int, Tensor] = {}
    groups: dict[tuple[Backend, torch.device], list[tuple[int, Placed]]] = {}
    for i, access in enumerate(accesses):
        if is_composite(access.weight, access.g):
            results[i] = normalize(access)
            continue
        backend, dense, view = place(access.weight, access.dim, access.backend)
        if backend is torch_cpu:
            results[i] = normalize(access)
        else:
            kind = backend, access.weight.device
            groups.setdefault(kind, []).append((i, (access, dense, view)))
    for (backend, _), members in groups.items():
        at, alike = zip(*members, strict=True)
        results.update(zip(at, _normalize_alike(backend, alike), strict=True))
    return [results[i] for i in range(len(accesses))]


def is_composite(weight: Tensor, g: Tensor) -> bool:
    """Whether torch's own operations take it, one by one: compiled, transformed, traced, sharded.

    A compiler makes one kernel of them by itself.
    """
    return (
        torch.compiler.is_compiling()
        or functorch.active()
        or is_tracing()
        or type(weight) not in PLAIN
        or type(g) not in PLAIN
        or weight.is_complex()
        or weight.ndim < 2
        or weight.numel() == 0
        or weight.is_meta
    )


def place(weight: Tensor, dim: int | None, name: str) -> tuple[Backend, Tensor, MatrixView]:
    """What computes a weight, the weight made dense, and its view, of one row where dim is None."""
    backend, dense, view = dispatch.place(weight, dim or 0, name)
    return backend, dense, view if dim is not None else MatrixView(1, 1, dense.numel())


def _fused(weight: Tensor, g: Tensor, dim: int | None, dtype: torch.dtype) -> Tensor | None:
    """What torch's fused operation computes, with its graph; None where it does not, or wrongly.

    A node of Python would take as long again as all of it, of a small weight.
    """
    if dim is None or not (dim == 0 or dim == weight.ndim - 1) or not weight.is_contiguous():
        return None
    if not weight.dtype == g.dtype == dtype or g.ndim != weight.ndim or not HAS_FUSED:
        return None
    if not g.is_contiguous():  # it is read as it lies
        return None
    scaled: Tensor
    scaled, norms = fused_weight_norm(weight, g, dim)
    if not all_regular(norms):
        return None
    if scaled.grad_fn is not None:
        scaled.grad_fn.register_hook(partial(_in_second_derivatives, weight, g, dim))
    return scaled


def _in_second_derivatives(
    weight: Tensor, g: Tensor, dim: int, grads_in: Any, grads_out: Any
) -> tuple[Tensor | None, ...] | None:
    """Right gradients in place of torch's ``grads_in``, which take the norms for constants."""
    if not torch.is_grad_enabled() or grads_out[0] is None:
        return None
    of_both = torch_row_scaling.gradient(grads_out[0], weight, g, dim)
    return tuple(
        new if old is not None else None for new, old in zip(of_both, grads_in, strict=True)
    )


def _normalize_alike(backend: Backend, placed: Sequence[Placed]) -> list[Tensor]:
    calls = [
        RowScaling(dense.detach(), view, access.g.detach().contiguous(), access.dtype)
        for access, dense, view in placed
    ]
    device_type = calls[0].weight.device.type
    outputs = without_autocast(device_type, backend.scale_rows_together, calls)
    results = [output.weight for output in outputs]
    nodes = [
        i
        for i, (access, dense, _) in enumerate(placed)
        if torch.is_grad_enabled() and (dense.requires_grad or access.g.requires_grad)
    ]
    for bucket in buckets([calls[i].weight.nbytes for i in nodes]):
        at = nodes[bucket]
        kept = []
        for i in at:
            (weight, view, g, _), (access, *_) = calls[i], placed[i]
            versions = version(weight), version(access.g)
            kept.append(Scaled(weight, view, g, outputs[i].norms, access.dim, versions))
        weights, gs = [placed[i][1] for i in at], [placed[i][0].g for i in at]
        computed = backend, kept, [results[i] for i in at]
        for i, result in zip(at, ScaleRowsOfMany.apply(computed, *weights, *gs), strict=True):
            results[i] = result
    return results
