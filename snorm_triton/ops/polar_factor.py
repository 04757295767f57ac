"""How an access to a weight's polar factor is computed, of one weight or many."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from ..torch_internals import functorch
from ..torch_internals.autograd import EagerFunction, compiled_autograd_key
from ..torch_internals.storage import version
from ..torch_internals.tracing import is_tracing
from . import newton_schulz
from .estimates import modified
from .modes.composite import without_autocast
from .orthogonal_maps import Reading, is_orthonormal, memory_format

PLAIN = (Tensor, Parameter)


class Polar(NamedTuple):
    """What accesses have in common whose polar factors are computed together."""

    reading: Reading
    n_iterations: int
    dtype: torch.dtype  # of the results


class PolarAccess(NamedTuple):
    """One access to a weight."""

    weight: Tensor
    polar: Polar


def orthonormalize(access: PolarAccess) -> Tensor:
    """The weight's polar factor, of its shape."""
    return _orthonormalize_alike(access.polar, [access.weight])[0]


def orthonormalize_together(accesses: Sequence[PolarAccess]) -> list[Tensor]:
    """As :func:`orthonormalize` of each, those of a shape by one batched product for each step."""
    groups: dict[Any, list[int]] = {}
    for i, (weight, polar) in enumerate(accesses):
        kind = polar, tuple(weight.shape), weight.dtype, weight.device
        groups.setdefault(kind, []).append(i)
    results: dict[int, Tensor] = {}
    for (polar, *_), at in groups.items():
        alike = _orthonormalize_alike(polar, [accesses[i].weight for i in at])
        results.update(zip(at, alike, strict=True))
    return [results[i] for i in range(len(accesses))]


@torch.no_grad()
def well_conditioned(access: PolarAccess) -> Tensor:
    """The weight's polar factor, in the weight's dtype; as it is where it is orthonormal.

    Reads it. Where the polynomials do not suffice, by singular values.

    Raises:
        ValueError: the weight has none, being rank-deficient or not finite.
    """
    weight, (reading, n_iterations, _) = access
    if weight.is_meta or weight.numel() == 0:
        return weight.clone()
    x = _batch(weight, reading)
    if is_orthonormal(x):
        return weight.clone()
    if not x.isfinite().all():
        raise ValueError("it holds values that are not finite, and so has no polar factor")
    kind = x.device.type
    q = without_autocast(kind, newton_schulz.record, x, n_iterations).q
    if not (newton_schulz.defect(q) < 1e-3 * x.shape[-1] ** 0.5).all():
        u, singular, vh = torch.linalg.svd(x, full_matrices=False)
        ratio = float((singular[..., -1] / singular[..., 0]).nan_to_num().min())
        if ratio < 10 * torch.finfo(x.dtype).eps:
            raise ValueError(
                f"its smallest singular value is {ratio:.1g} of its largest: it is rank-deficient, "
                "and so has no polar factor"
            )
        q = u @ vh
    return _split(q, [weight], reading, weight.dtype)[0]


def _orthonormalize_alike(polar: Polar, weights: Sequence[Tensor]) -> Sequence[Tensor]:
    kind = weights[0].device.type
    if _is_composite(weights):
        return without_autocast(kind, _composite, polar, weights)
    results: tuple[Tensor, ...] = without_autocast(kind, PolarFactors.apply, polar, *weights)
    return results


def _is_composite(weights: Sequence[Tensor]) -> bool:
    """Whether torch's own derivatives are taken: compiled, transformed, traced."""
    return (
        torch.compiler.is_compiling()
        or functorch.active()
        or is_tracing()
        or any(type(weight) not in PLAIN or weight.is_meta for weight in weights)
    )


def _composite(polar: Polar, weights: Sequence[Tensor]) -> list[Tensor]:
    x = _join([_batch(weight, polar.reading) for weight in weights])
    q = newton_schulz.recorded(x, polar.n_iterations, twice=functorch.active()).q
    return _split(q, weights, polar.reading, polar.dtype)


class PolarFactors(EagerFunction):  # type: ignore[misc]
    """Weights of one shape -> their polar factors.

    No transform of ``torch.func`` comes here. What a backward needs is kept on the node rather than
    with save_for_backward, as by :class:`.weight_norm.ScaleRows`.
    """

    if compiled_autograd_key is not None:
        _compiled_autograd_key = staticmethod(compiled_autograd_key)

    @staticmethod
    def forward(ctx: Any, polar: Polar, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        x = _join([_batch(weight, polar.reading) for weight in weights])
        recorded = newton_schulz.record(x, polar.n_iterations)
        ctx.polar, ctx.weights = polar, weights
        ctx.versions = list(map(version, weights))
        if any(ctx.needs_input_grad):
            ctx.recorded = recorded
        return tuple(_split(recorded.q, weights, polar.reading, polar.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (reading, n_iterations, _), weights = ctx.polar, ctx.weights
        # Many times the weight: given back by the first backward, for there is seldom another.
        recorded, ctx.recorded = ctx.recorded, None
        is_differentiated = torch.is_grad_enabled() or torch.compiler.is_compiling()
        if is_differentiated or recorded is None:
            if list(map(version, weights)) != ctx.versions:
                raise modified(weights[0])
            x = _join([_batch(weight, reading) for weight in weights])
            if is_differentiated:
                recorded = newton_schulz.recorded(x, n_iterations, twice=True)
            else:
                recorded = newton_schulz.record(x, n_iterations)
        given = [
            torch.zeros_like(weight) if grad is None else grad
            for weight, grad in zip(weights, grads, strict=True)
        ]
        grad = _join([_batch(each, reading) for each in given])
        kind = grad.device.type
        gradients = without_autocast(kind, newton_schulz.gradient, grad, recorded)
        results = _split(gradients, weights, reading, weights[0].dtype)
        used = zip(results, grads, strict=True)
        return None, *(None if grad is None else result for result, grad in used)


def _batch(weight: Tensor, reading: Reading) -> Tensor:
    """The weight's matrices, tall, of shape (B, n, k), float32 or more precise."""
    if weight.layout != torch.strided:  # the gradient of a sparse Embedding
        weight = weight.to_dense()
    x = reading.tall(weight.resolve_conj())
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x.reshape(prod(x.shape[:-2]), *x.shape[-2:])


def _join(batches: Sequence[Tensor]) -> Tensor:
    return batches[0] if len(batches) == 1 else torch.cat(list(batches))


def _split(
    joined: Tensor, weights: Sequence[Tensor], reading: Reading, dtype: torch.dtype
) -> list[Tensor]:
    """What belongs to each weight, of its shape, in memory of its own."""
    parts = [joined] if len(weights) == 1 else joined.chunk(len(weights))
    # Views of one tensor would share a version: a change of one would be taken for one of all.
    return [
        reading.undo(part, weight).to(dtype).clone(memory_format=memory_format(weight))
        for part, weight in zip(parts, weights, strict=True)
    ]
