"""Where the shards of a DTensor lie in the matrix, and what the ranks sum."""

from __future__ import annotations

from functools import cached_property
from math import prod

import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from ..matrix_view import MatrixView, in_matrix_layout
from ..torch_any_device import Matrix


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
