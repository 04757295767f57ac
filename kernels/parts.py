"""The results of many weights, which lie in one piece of memory, as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops.calls import State
from ..ops.matrix_view import MatrixView


class Layout(NamedTuple):
    """How a tensor lies in its memory; ``like``: one that lies in order, which is sooner told."""

    shape: Sequence[int]
    stride: Sequence[int]
    like: Tensor | None = None

    @classmethod
    def kept(cls, weight: Tensor) -> Layout:
        """That of ``weight``, for many times."""
        in_order = torch.empty(weight.shape, device="meta").stride() == weight.stride()
        return cls(weight.shape, weight.stride(), weight if in_order else None)


def split(memory: Tensor, sizes: Sequence[int], layouts: Sequence[Layout]) -> list[Tensor]:
    """Tensors of these layouts in parts of ``memory``, and no views of it.

    Each has a version counter of its own.
    """
    parts = torch.unsafe_split_with_sizes(memory, sizes)
    return [
        part.as_strided_(shape, stride) if like is None else part.resize_as_(like)
        for part, (shape, stride, like) in zip(parts, layouts, strict=True)
    ]


def split_states(state: Tensor, views: Sequence[MatrixView]) -> list[State]:
    """u, v and sigma of each layer, where :func:`.plan.places_of` has them."""
    sizes = [size for view in views for size in (view.M, view.N)]
    sigmas, *vectors = torch.unsafe_split_with_sizes(state, [len(views), *sizes])
    return list(map(State, vectors[::2], vectors[1::2], sigmas.unbind()))
