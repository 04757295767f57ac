"""Spectral normalization of a weight that is sharded over a device mesh: a DTensor.

A rank multiplies with its own shard. What the ranks sum are vectors of the sizes of u and v, one of
each an iteration, and a scalar in the backward; the weight is never gathered. u, v and sigma are
plain tensors, the same on every rank to the last bit.
"""

from __future__ import annotations

from functools import cached_property, partial
from math import prod
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from ...torch_internals.autograd import foreach_copy_
from .. import torch_any_device
from ..autograd import differentiable_sigma, gradient_in_torch, outer
from ..calls import Access, GradientCall, Iterate, Normalized, Replay, State
from ..dispatch import backend_for
from ..matrix_view import MatrixView, in_matrix_layout, like_weight
from ..power_iteration import estimate
from ..torch_any_device import Matrix, in_dtype_of, nonzero
from .compiled import at_run_time
from .composite import without_autocast


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
    weight, u, v, dim, step, dtype, backend, _ = access
    check(weight, backend)
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
    shard_sn: Tensor
    if torch.is_grad_enabled() and weight.requires_grad:
        direction = layout.rows(u), layout.columns(v)
        if weight.is_complex():
            shard_sn = _rescale_in_torch(layout, shard, *direction, dtype)
        else:
            shard_sn = kernels.rescale(dense, sigma, dtype)
            shard_sn = _Rescaled.apply(layout, view, (*direction, sigma), shard_sn, shard)
        sigma = differentiable_sigma(sigma, shard, direction[0], direction[1].conj(), dim)
    else:
        shard_sn = kernels.rescale(dense, sigma, dtype)
    return Normalized(_sharded_as(weight, shard_sn), u, v, sigma, is_written=True)


def _at_run_time(access: Access) -> Access:
    """The access in plain tensors; what compiled code asks for before it knows is decided here."""
    u, v, step = plain(access.u), plain(access.v), access.step
    if isinstance(step, Replay):
        step = Replay(plain(step.sigma))
    elif isinstance(step, Iterate) and step.live is not None:
        state = State(u, v, plain(step.live.sigma).to(u.dtype))
        due = None if step.due is None else plain(step.due)
        is_due = due is None or bool(due)
        (u, v, _), step = at_run_time(state, step, [], None, is_due)
        if due is not None and is_due:
            due.zero_()
    return access._replace(u=u, v=v, step=step)


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


class Shards:
    """The whole weight as a matrix, by the products of this rank's shard, summed over the ranks."""

    def __init__(self, layout: Layout, shard: Matrix) -> None:
        self.layout = layout
        self.shard = shard

    def matvec(self, v: Tensor) -> Tensor:
        """``W v``."""
        return self.layout.sum_rows(self.shard.matvec(self.layout.columns(v)))

    def adjoint(self, u: Tensor) -> Tensor:
        """``W^H u``."""
        return self.layout.sum_columns(self.shard.adjoint(self.layout.rows(u)))

    def inner(self, u: Tensor, v: Tensor) -> Tensor:
        """``u^H W v``."""
        partial_sum = self.shard.inner(self.layout.rows(u), self.layout.columns(v))
        return self.layout.sum(partial_sum)


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
            call = GradientCall(grad, dense, view, u, v, sigma)
            grad_shard = torch_any_device.gradient(call, layout.sum)
        return None, None, None, None, grad_shard


def _rescale_in_torch(
    layout: Layout, shard: Tensor, u: Tensor, v: Tensor, dtype: torch.dtype
) -> Tensor:
    """``shard / sigma`` in torch's own differentiable operations."""
    wide = in_dtype_of(shard, u)
    direction = outer(u.conj(), v, shard.shape, layout.dim)
    sigma: Tensor = _Sum.apply(layout, (direction * wide).sum())
    return (wide / nonzero(sigma)).to(dtype)
