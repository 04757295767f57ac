"""Spectral normalization of a weight that is sharded over a device mesh: a DTensor.

A rank multiplies with its own shard. What the ranks sum are vectors of the sizes of u and v, one of
each an iteration, and a scalar in the backward; the weight is never gathered. u, v and sigma are
plain tensors, the same on every rank to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from ...torch_internals.autograd import foreach_copy_, in_backward
from .. import torch_any_device
from ..autograd import differentiable_sigma
from ..calls import Access, Iterate, Normalized, Replay
from ..derivatives import gradient_in_torch, outer
from ..dispatch import backend_for
from ..matrix_view import MatrixView, like_weight
from ..power_iteration import estimate
from ..rescaling import PLAIN, Rescaling, rescaled
from ..state import write as write
from ..torch_any_device import Matrix, in_dtype_of
from .composite import without_autocast
from .shards import Layout, Shards, plain


def check(weight: Tensor, backend: str = "auto") -> None:
    """Raise ValueError for a sharded weight that :func:`normalize` does not take."""
    assert isinstance(weight, DTensor)
    for placement in weight.placements:
        if type(placement) is not Shard and not placement.is_replicate():
            raise ValueError(
                f"a weight placed as {weight.placements} cannot be normalized: each placement must "
                "be Shard or Replicate; where FSDP2 shards what tensor parallelism has sharded, "
                "access the weight inside forward"
            )
    if weight.ndim < 2:
        raise ValueError(
            "a sharded 1-D parameter cannot be normalized: replicate it, or under FSDP2 access it "
            "inside forward"
        )
    if backend == "triton":
        raise ValueError(
            "backend='triton' cannot run: the weight is sharded; leave backend at 'auto'"
        )


# Traced, the sums over ranks would be torch.compile's to order.
@partial(torch.compiler.disable, reason="a sharded weight is normalized outside of the graph")
def normalize(access: Access) -> Normalized:
    """As :func:`snorm_triton.functional.normalize`; sigma is differentiable.

    ``weight_sn`` has the weight's placements. Every rank of the mesh must call it, in one order.
    """
    access = _at_run_time(access)
    weight, u, v, dim, step, dtype, backend, rescaling = access
    check(weight, backend)
    if weight.is_complex() and rescaling.learned is not None:
        raise ValueError("scale='learned' takes no complex weight that is sharded")
    assert isinstance(weight, DTensor)
    layout, shard = Layout(weight, dim), cast(Tensor, _Shard.apply(weight))
    dense, view = layout.in_memory(shard.detach())
    shards = Shards(layout, Matrix(in_dtype_of(dense, u), view))
    u, v, sigma = without_autocast(dense.device.type, estimate, shards, u, v, step)
    if isinstance(step, Iterate) and step.live is not None:
        written = [u, v, sigma.abs() if sigma.is_complex() else sigma]
        foreach_copy_([plain(buffer) for buffer in step.live], written)
    # A rank may hold nothing of the weight, for which no kernel is launched.
    kernels = backend_for(dense, backend) if dense.numel() else torch_any_device
    direction = layout.rows(u), layout.columns(v).contiguous()
    trains = weight.requires_grad or rescaling.requires_grad
    is_differentiable = torch.is_grad_enabled() and trains
    if is_differentiable and weight.is_complex():
        shard_sn = _rescale_in_torch(layout, shard, *direction, dtype, rescaling)
    else:
        call = dense, view, *direction, Replay(sigma), dtype, rescaling.detached()
        shard_sn = kernels.normalize(*call).weight_sn
    if is_differentiable:
        if not weight.is_complex():
            taken, scale = (*direction, sigma, rescaling.detached()), rescaling.learned
            shard_sn = _Rescaled.apply(layout, view, taken, shard_sn, shard, scale)
        sigma = differentiable_sigma(sigma, shard, direction[0], direction[1].conj(), dim)
    return Normalized(_sharded_as(weight, shard_sn), u, v, sigma, is_written=True)


def normalize_together(accesses: Sequence[Access]) -> list[Normalized]:
    """:func:`normalize` of each."""
    return [normalize(access) for access in accesses]


def _at_run_time(access: Access) -> Access:
    """The access in plain tensors; what compiled code asks for before it knows is decided here."""
    u, v, step = plain(access.u), plain(access.v), access.step
    if isinstance(step, Replay):
        step = Replay(plain(step.sigma))
    elif isinstance(step, Iterate) and step.live is not None:
        due = None if step.due is None else plain(step.due)
        is_due = due is None or bool(due)
        if in_backward() or not is_due:
            step = Replay(plain(step.live[2]).to(u.dtype))
        if due is not None and is_due:
            due.zero_()
    rescaling, learned = access.rescaling, access.rescaling.learned
    if isinstance(learned, DTensor):
        rescaling = rescaling._replace(learned=learned.full_tensor())
    return access._replace(u=u, v=v, step=step, rescaling=rescaling)


def _sharded_as(weight: DTensor, shard: Tensor) -> Tensor:
    return DTensor.from_local(
        shard,
        weight.device_mesh,
        weight.placements,
        run_check=False,
        shape=weight.shape,
        stride=weight.stride(),
    )


class _Shard(torch.autograd.Function):
    """weight -> its shard, and back; torch 2.11's own takes the shards of a gradient to be even."""

    @staticmethod
    def forward(ctx: Any, weight: DTensor) -> Tensor:
        ctx.weight = weight.detach()
        return weight.to_local()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _sharded_as(ctx.weight, grad)


class _Sum(torch.autograd.Function):
    """The sum of a scalar over the shards; each rank then uses it for a shard of its own."""

    @staticmethod
    def forward(ctx: Any, layout: Layout, partial: Tensor) -> Tensor:
        ctx.layout = layout
        return layout.sum(partial.clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return None, _Sum.apply(ctx.layout, grad)


class _Rescaled(torch.autograd.Function):
    """shard and scale -> shard / sigma, already computed; u and v are the shard's own parts."""

    @staticmethod
    def forward(
        ctx: Any,
        layout: Layout,
        view: MatrixView,
        taken: tuple[Tensor, Tensor, Tensor, Rescaling],
        shard_sn: Tensor,
        shard: Tensor,
        learned: Tensor | None,
    ) -> Tensor:
        *state, rescaling = taken
        ctx.save_for_backward(shard, *state, learned)
        ctx.layout, ctx.view, ctx.rescaling = layout, view, rescaling
        return shard_sn

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        shard, u, v, sigma, learned = ctx.saved_tensors
        layout, view, rescaling = ctx.layout, ctx.view, ctx.rescaling._replace(learned=learned)
        if torch.is_grad_enabled():  # the gradient itself is to be differentiated
            if learned is not None:
                raise RuntimeError(
                    "the gradient of a sharded weight with scale='learned' is not differentiable"
                )
            total = partial(_Sum.apply, layout)
            gradients = gradient_in_torch(grad, shard, u, v, layout.dim, rescaling, total)
        else:
            dense, _ = layout.in_memory(shard)
            grad = like_weight(grad, dense, view, layout.dim)
            of_shard = grad, dense, view, u, v, sigma, rescaling
            gradients = torch_any_device.rescale_backward(*of_shard, layout.sum)
        return None, None, None, None, *gradients


def _rescale_in_torch(
    layout: Layout,
    shard: Tensor,
    u: Tensor,
    v: Tensor,
    dtype: torch.dtype,
    rescaling: Rescaling = PLAIN,
) -> Tensor:
    """``shard / sigma`` in torch's own differentiable operations."""
    wide = in_dtype_of(shard, u)
    direction = outer(u.conj(), v, shard.shape, layout.dim)
    sigma: Tensor = _Sum.apply(layout, (direction * wide).sum())
    return rescaled(wide, sigma, rescaling).to(dtype)
