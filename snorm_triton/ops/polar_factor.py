"""How an access to a weight's polar factor is computed, of one weight or many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from ..torch_internals import functorch
from ..torch_internals.autograd import EagerFunction, compiled_autograd_key
from ..torch_internals.tracing import is_tracing
from . import newton_schulz
from .autograd import modified
from .modes.composite import without_autocast
from .orthogonal_maps import from_matrices, is_orthonormal, matrices

PLAIN = (Tensor, Parameter)


class Reading(NamedTuple):
    """How weights are read as matrices, how many polynomials, and the dtype of the results."""

    dim: int | None
    n_iterations: int
    dtype: torch.dtype


class PolarAccess(NamedTuple):
    """One access to a weight."""

    weight: Tensor
    reading: Reading


def orthonormalize(weight: Tensor, reading: Reading) -> Tensor:
    """The weight's polar factor, of its shape: one product for each of its matrices."""
    return _orthonormalize_alike(reading, [weight])[0]


def orthonormalize_together(accesses: Sequence[PolarAccess]) -> list[Tensor]:
    """As :func:`orthonormalize` of each, those of a shape by one batched product for each step."""
    groups: dict[Any, list[int]] = {}
    for i, (weight, reading) in enumerate(accesses):
        kind = reading, tuple(weight.shape), weight.dtype, weight.device
        groups.setdefault(kind, []).append(i)
    results: dict[int, Tensor] = {}
    for (reading, *_), at in groups.items():
        alike = _orthonormalize_alike(reading, [accesses[i].weight for i in at])
        results.update(zip(at, alike, strict=True))
    return [results[i] for i in range(len(accesses))]


@torch.no_grad()
def well_conditioned(weight: Tensor, reading: Reading) -> Tensor:
    """A weight that has the polar factor of this one: that itself, or ``weight`` if it is it.

    Reads them. Where the polynomials do not suffice, by singular values.

    Raises:
        ValueError: the weight has none, being rank-deficient or not finite.
    """
    if weight.is_meta or weight.numel() == 0:
        return weight
    x = _batch(weight, reading.dim)
    if is_orthonormal(x if x.shape[-2] >= x.shape[-1] else x.mH):
        return weight
    if not x.isfinite().all():
        raise ValueError("it holds values that are not finite, and so has no polar factor")
    kind = x.device.type
    q = without_autocast(kind, newton_schulz.record, x, reading.n_iterations).q
    if not (newton_schulz.defect(q) < 1e-3 * min(x.shape[-2:]) ** 0.5).all():
        u, singular, vh = torch.linalg.svd(x, full_matrices=False)
        ratio = float((singular[..., -1] / singular[..., 0]).nan_to_num().min())
        if ratio < 10 * torch.finfo(x.dtype).eps:
            raise ValueError(
                f"its smallest singular value is {ratio:.1g} of its largest: it is rank-deficient, "
                "and so has no polar factor"
            )
        q = u @ vh
    return _as_weight(q, weight, reading.dim).to(weight.dtype)


def _orthonormalize_alike(reading: Reading, weights: Sequence[Tensor]) -> Sequence[Tensor]:
    kind = weights[0].device.type
    if weights[0].numel() == 0:
        return [weight.to(reading.dtype, copy=True) for weight in weights]
    if _is_composite(weights):
        return without_autocast(kind, _composite, reading, weights)
    results: tuple[Tensor, ...] = without_autocast(kind, PolarFactors.apply, reading, *weights)
    return results


def _is_composite(weights: Sequence[Tensor]) -> bool:
    """Whether torch's own derivatives are taken: compiled, transformed, traced."""
    return (
        torch.compiler.is_compiling()
        or functorch.active()
        or is_tracing()
        or any(type(weight) not in PLAIN or weight.is_meta for weight in weights)
    )


def _composite(reading: Reading, weights: Sequence[Tensor]) -> list[Tensor]:
    x = _join([_batch(weight, reading.dim) for weight in weights])
    return _split(newton_schulz.recorded(x, reading.n_iterations).q, weights, reading)


class PolarFactors(EagerFunction):  # type: ignore[misc]
    """Weights of one shape -> their polar factors.

    No transform of ``torch.func`` comes here. What a backward needs is kept on the node rather than
    with save_for_backward, as by :class:`.weight_norm.ScaleRows`.
    """

    if compiled_autograd_key is not None:
        _compiled_autograd_key = staticmethod(compiled_autograd_key)

    @staticmethod
    def forward(ctx: Any, reading: Reading, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        x = _join([_batch(weight, reading.dim) for weight in weights])
        recorded = newton_schulz.record(x, reading.n_iterations)
        ctx.reading, ctx.weights = reading, weights
        ctx.versions = [weight._version for weight in weights]
        if any(ctx.needs_input_grad):
            ctx.recorded = recorded
        return tuple(_split(recorded.q, weights, reading))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        reading, weights = ctx.reading, ctx.weights
        recorded = ctx.recorded
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            if [weight._version for weight in weights] != ctx.versions:
                raise modified(weights[0])
            x = _join([_batch(weight, reading.dim) for weight in weights])
            recorded = newton_schulz.recorded(x, reading.n_iterations)
        given = [
            torch.zeros_like(weight) if grad is None else grad
            for weight, grad in zip(weights, grads, strict=True)
        ]
        grad = _join([_batch(each, reading.dim) for each in given])
        kind = grad.device.type
        gradients = without_autocast(kind, newton_schulz.gradient, grad, recorded)
        alike = Reading(reading.dim, reading.n_iterations, weights[0].dtype)
        results = _split(gradients, weights, alike)
        used = zip(results, grads, strict=True)
        return None, *(None if grad is None else result for result, grad in used)


def _batch(weight: Tensor, dim: int | None) -> Tensor:
    """The weight's matrices, of shape (B, M, N), float32 or more precise."""
    if weight.layout != torch.strided:  # the gradient of a sparse Embedding
        weight = weight.to_dense()
    x = matrices(weight.resolve_conj(), dim)
    return x.to(torch.promote_types(x.dtype, torch.float32)).reshape(-1, *x.shape[-2:])


def _join(batches: Sequence[Tensor]) -> Tensor:
    return batches[0] if len(batches) == 1 else torch.cat(list(batches))


def _split(joined: Tensor, weights: Sequence[Tensor], reading: Reading) -> list[Tensor]:
    """What belongs to each weight, of its shape, in memory of its own."""
    parts = [joined] if len(weights) == 1 else joined.chunk(len(weights))
    return [
        # Views of one tensor would share a version: a change of one would be taken for one of all.
        _as_weight(part, weight, reading.dim).to(reading.dtype, copy=True)
        for part, weight in zip(parts, weights, strict=True)
    ]


def _as_weight(batch: Tensor, weight: Tensor, dim: int | None) -> Tensor:
    if dim is None:
        return batch.reshape(weight.shape)
    return from_matrices(batch.squeeze(0), weight, dim)
