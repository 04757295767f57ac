"""``g v / |v|`` as nodes of the autograd graph, for one weight or many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..torch_internals import functorch
from ..torch_internals.autograd import EagerFunction, compiled_autograd_key
from ..torch_internals.storage import version
from . import torch_row_scaling
from .backend import Backend
from .estimates import modified
from .matrix_view import MatrixView, like_weight
from .row_scaling import RowScalingGradient
from .scaled import Scaled, ScaledTogether


class _Node(EagerFunction):  # type: ignore[misc]
    """No transform of ``torch.func`` comes here.

    What a backward needs is kept on the node rather than with save_for_backward, as by
    :class:`.autograd.Rescale`: a checkpoint counts what is saved, and a weight that was prepared
    before it saves nothing in it.
    """

    if compiled_autograd_key is not None:
        _compiled_autograd_key = staticmethod(compiled_autograd_key)


class ScaleRows(_Node):
    """v and g -> ``g v / |v|``."""

    @staticmethod
    def forward(
        ctx: Any,
        backend: Backend,
        view: MatrixView,
        dim: int | None,
        dtype: torch.dtype,
        weight: Tensor,
        g: Tensor,
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        scales = g if g.is_contiguous() else g.contiguous()
        scaled, norms = backend.scale_rows(weight, view, scales, dtype)
        ctx.backend = backend
        ctx.scaled = weight, view, scales, norms, dim, (version(weight), version(g))
        ctx.g = g
        return scaled

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        if grad is None:
            return (None,) * 6
        weight, view, g, norms, dim, versions = ctx.scaled
        is_compiling = torch.compiler.is_compiling()
        if not is_compiling and (version(weight), version(ctx.g)) != versions:
            raise modified(weight)
        if is_compiling or torch.is_grad_enabled() or functorch.taken_of([grad]):
            return None, None, None, None, *torch_row_scaling.gradient(grad, weight, ctx.g, dim)
        grad = like_weight(grad, weight, view, dim)
        gradients = ctx.backend.scale_rows_backward(grad, weight, view, g, norms)
        return None, None, None, None, *gradients


class ScaleRowsOfMany(_Node):
    """v and g of many weights -> ``g v / |v|`` of each, already computed."""

    @staticmethod
    def forward(
        ctx: Any,
        computed: tuple[Backend, Sequence[Scaled], Sequence[Tensor]],
        *originals: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.backend, ctx.scaled, results = computed
        ctx.originals = originals
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        n = len(grads)
        used = [i for i, grad in enumerate(grads) if grad is not None]
        result: list[Tensor | None] = [None] * (2 * n)
        given = [grads[i] for i in used]
        is_compiling = torch.compiler.is_compiling()
        is_watched = is_compiling or functorch.taken_of(given) or torch.is_grad_enabled()
        if type(ctx.scaled) is ScaledTogether and not is_watched:
            return None, *ctx.scaled.gradients(grads, ctx.originals[n:])
        for i in () if is_compiling else used:
            _check_unchanged(ctx.scaled[i], ctx.originals[n + i])
        if is_watched:
            gradients = [
                torch_row_scaling.gradient(
                    grads[i], ctx.originals[i], ctx.originals[n + i], ctx.scaled[i].dim
                )
                for i in used
            ]
        else:
            calls = [_call(grads[i], ctx.scaled[i]) for i in used]
            gradients = ctx.backend.scale_rows_backward_together(calls)
        for i, (of_weight, of_g) in zip(used, gradients, strict=True):
            result[i], result[n + i] = of_weight, of_g
        return None, *result


def _call(grad: Tensor, scaled: Scaled) -> RowScalingGradient:
    weight, view, g, norms, dim, _ = scaled
    return RowScalingGradient(like_weight(grad, weight, view, dim), weight, view, g, norms)


def _check_unchanged(scaled: Scaled, g: Tensor) -> None:
    if (version(scaled.weight), version(g)) != scaled.versions:
        raise modified(scaled.weight)
