"""Spectral normalization of a weight that is sharded over a device mesh: a DTensor.

A rank multiplies with its own shard. What the ranks sum are vectors of the sizes of u and v, one of
each an iteration, and a scalar in the backward; the weight is never gathered. u, v and sigma are
plain tensors, the same on every rank to the last bit.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import cached_property, partial
from math import prod
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from . import eager, recomputation
from .autograd import differentiable_sigma, gradient_in_torch, outer
from .dispatch import operations
from .eager import in_dtype_of, nonzero
from .matrix_view import MatrixView, in_matrix_layout, like_weight
from .normalization import Request, SpectralNormalized


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
def normalize(request: Request) -> SpectralNormalized:
    """As :func:`snorm_triton.functional.normalize`; sigma is differentiable.

    ``weight_sn`` has the weight's placements. Every rank of the mesh must call it, in one order.
    """
    if request.sigma is None and len(request.buffers) == 3 and recomputation.is_running():
        # Compiled code asks for an iteration before it knows that it is recomputed.
        request = request._replace(sigma=request.buffers[-1].to(request.u.dtype), buffers=())
    elif request.due is not None:
        request = _if_due(request)
    weight, dim, dtype = request.weight, request.dim, request.dtype
    check(weight, request.backend)
    assert isinstance(weight, DTensor)
    layout, shard = Layout(weight, dim), cast(Tensor, _Shard.apply(weight))
    dense, view = layout.in_memory(shard.detach())
    # Every product of a matrix and a vector is in the dtype of u and v, whatever autocast says.
    kind = dense.device.type
    has_autocast = torch.amp.is_autocast_available(kind)
    with torch.autocast(kind, enabled=False) if has_autocast else nullcontext():
        u, v, sigma = _estimate(layout, dense, view, request)
    if request.buffers:
        buffers = [plain(buffer) for buffer in request.buffers]
        written = [u, v, sigma.abs() if sigma.is_complex() else sigma]
        torch._foreach_copy_(buffers, written)
    # A rank may hold nothing of the weight, for which no kernel is launched.
    rescale = operations(dense, request.backend).rescale if dense.numel() else eager.rescale
    shard_sn: Tensor
    if torch.is_grad_enabled() and weight.requires_grad:
        direction = layout.rows(u), layout.columns(v)
        if weight.is_complex():
            shard_sn = _rescale_in_torch(layout, shard, *direction, dtype)
        else:
            shard_sn = rescale(dense, sigma, dtype)
            shard_sn = _Rescaled.apply(layout, view, (*direction, sigma), shard_sn, shard)
        sigma = differentiable_sigma(sigma, shard, direction[0], direction[1].conj(), dim)
    else:
        shard_sn = rescale(dense, sigma, dtype)
    return SpectralNormalized(_sharded_as(weight, shard_sn), u, v, sigma)


def _sharded_as(weight: DTensor, shard: Tensor) -> Tensor:
    return DTensor.from_local(
        shard,
        weight.device_mesh,
        weight.placements,
        run_check=False,
        shape=weight.shape,
        stride=weight.stride(),
    )


def broadcast(mesh: DeviceMesh, *tensors: Tensor, source: int = 0) -> None:
    """Overwrite plain tensors with those of the rank at ``source`` in each mesh dimension."""
    for tensor in tensors:
        for mesh_dim in range(mesh.ndim) if not tensor.is_meta else ():
            dist.broadcast(tensor, group=mesh.get_group(mesh_dim), group_src=source)


def plain(state: Tensor) -> Tensor:
    """A plain tensor of the memory of u, v or sigma: ``distribute_module`` makes them DTensors."""
    return state.to_local() if isinstance(state, DTensor) else state


class Layout:
    """Where a rank's shard lies in the weight, read as a matrix along ``dim``."""

    def __init__(self, weight: DTensor, dim: int) -> None:
        mesh, spans = weight.device_mesh, [(0, size) for size in weight.shape]
        self.groups = []
        for mesh_dim, placement in enumerate(weight.placements):
            if not isinstance(placement, Shard):
                continue
            # As torch.chunk: the last ranks may hold less than the others, or nothing.
            start, size = spans[placement.dim]
            length = -(-size // mesh.size(mesh_dim))
            offset = min(length * mesh.get_local_rank(mesh_dim), size)
            spans[placement.dim] = start + offset, min(length, size - offset)
            self.groups.append(mesh.get_group(mesh_dim))
        self.dim = dim
        self.spans = [slice(start, start + length) for start, length in spans]
        self.shape = weight.shape

    @cached_property
    def _columns(self) -> tuple[list[int], tuple[slice, ...]]:
        others = [axis for axis in range(len(self.shape)) if axis != self.dim]
        return [self.shape[axis] for axis in others], tuple(self.spans[axis] for axis in others)

    def rows(self, u: Tensor) -> Tensor:
        """The part of ``u`` of shape (M,) that belongs to the shard's rows, a view."""
        return u[self.spans[self.dim]]

    def columns(self, v: Tensor) -> Tensor:
        """The part of ``v`` of shape (N,) that belongs to the shard's columns."""
        shape, spans = self._columns
        return v.view(shape)[spans].reshape(-1)

    def in_memory(self, shard: Tensor) -> tuple[Tensor, MatrixView]:
        """The shard, dense, and its view."""
        if shard.numel() > 0:
            return in_matrix_layout(shard, self.dim)
        rows = shard.shape[self.dim]
        others = [size for axis, size in enumerate(shard.shape) if axis != self.dim]
        return shard.contiguous(), MatrixView(1, rows, prod(others))

    def sum(self, partial: Tensor) -> Tensor:
        """The sum over all shards, in place."""
        if not partial.is_meta:
            for group in self.groups:
                dist.all_reduce(partial, group=group)
        return partial

    def sum_rows(self, t: Tensor) -> Tensor:
        """W v of shape (M,), from the products of the shards."""
        whole = t.new_zeros(self.shape[self.dim])
        self.rows(whole).copy_(t)
        return self.sum(whole)

    def sum_columns(self, s: Tensor) -> Tensor:
        """W^H u of shape (N,), from the products of the shards."""
        shape, spans = self._columns
        whole = s.new_zeros(shape)
        part = whole[spans]
        part.copy_(s.view(part.shape))
        return self.sum(whole).view(-1)


def _if_due(request: Request) -> Request:
    """What compiled code asks for in any case, where the last iteration may do."""
    due = plain(cast(Tensor, request.due))
    if due:
        due.zero_()
        return request
    return request._replace(buffers=(), sigma=request.buffers[-1].to(request.u.dtype))


def _estimate(
    layout: Layout, dense: Tensor, view: MatrixView, request: Request
) -> tuple[Tensor, Tensor, Tensor]:
    """The u, v and sigma to take, as :func:`snorm_triton.eager.normalize` has them."""
    u, v, eps = plain(request.u), plain(request.v), request.eps
    if request.sigma is not None:
        return u.clone(), v.clone(), plain(request.sigma).clone()
    operand = view.operand(in_dtype_of(dense, u))
    if request.n_power_iterations == 0:
        u, v = F.normalize(u, dim=0, eps=eps), F.normalize(v, dim=0, eps=eps)
        t = eager.matvec(operand, view.columns_to_memory(layout.columns(v)))
        return u, v, layout.sum(torch.vdot(layout.rows(u), t))
    for _ in range(request.n_power_iterations):
        t = eager.matvec(operand, view.columns_to_memory(layout.columns(v)))
        t, _ = eager.unit(layout.sum_rows(t))
        s = eager.matvec_adjoint(operand, layout.rows(t))
        s, sigma = eager.unit(layout.sum_columns(view.columns_to_logical(s)))
        good = (sigma > 0) & (sigma < float("inf"))
        u, v = torch.where(good, t, u), torch.where(good, s, v)
    return u, v, sigma.to(u.dtype)


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
    """shard -> shard / sigma, already computed; u and v are the shard's own parts."""

    @staticmethod
    def forward(
        ctx: Any,
        layout: Layout,
        view: MatrixView,
        estimate: tuple[Tensor, Tensor, Tensor],
        shard_sn: Tensor,
        shard: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(shard, *estimate)
        ctx.layout, ctx.view = layout, view
        return shard_sn

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        shard, u, v, sigma = ctx.saved_tensors
        layout, view = ctx.layout, ctx.view
        if torch.is_grad_enabled():  # the gradient itself is to be differentiated
            total = partial(_Sum.apply, layout)
            grad_shard = gradient_in_torch(grad, shard, u, v, layout.dim, total)
        else:
            dense, _ = layout.in_memory(shard)
            grad = like_weight(grad, dense, view, layout.dim)
            grad_shard = eager.rescale_backward(grad, dense, view, u, v, sigma, layout.sum)
        return None, None, None, None, grad_shard


def _rescale_in_torch(
    layout: Layout, shard: Tensor, u: Tensor, v: Tensor, dtype: torch.dtype
) -> Tensor:
    """``shard / sigma`` in torch's own differentiable operations."""
    wide = in_dtype_of(shard, u)
    direction = outer(u.conj(), v, shard.shape, layout.dim)
    sigma: Tensor = _Sum.apply(layout, (direction * wide).sum())
    return (wide / nonzero(sigma)).to(dtype)
