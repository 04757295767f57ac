"""The results of many weights, which lie in one piece of memory, as tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..ops.calls import State
from ..ops.matrix_view import MatrixView


def split(
    memory: Tensor, sizes: Sequence[int], shapes: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[Tensor]:
    """Tensors of these shapes and strides in parts of ``memory``, and no views of it.

    Each has a version counter of its own.
    """
    parts = torch.unsafe_split_with_sizes(memory, sizes)
    return [part.as_strided_(*shape) for part, shape in zip(parts, shapes, strict=True)]


def split_states(state: Tensor, views: Sequence[MatrixView]) -> list[State]:
    """u, v and sigma of each layer, where :func:`.plan.places_of` has them."""
    sizes = [size for view in views for size in (view.M, view.N)]
    sigmas, *vectors = torch.unsafe_split_with_sizes(state, [len(views), *sizes])
    return list(map(State, vectors[::2], vectors[1::2], sigmas.unbind()))
