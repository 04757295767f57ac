"""MatrixView says where each matrix element lies, for every dense layout."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snorm_triton.ops.matrix_view import flat, in_matrix_layout, like_weight, matrix_view
from snorm_triton.reference import as_matrix

shapes = st.lists(st.integers(1, 3), min_size=2, max_size=5).map(tuple)


def numbered(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.arange(float(torch.Size(shape).numel())).view(shape)


def permuted(shape: tuple[int, ...], order: tuple[int, ...]) -> torch.Tensor:
    """A weight of ``shape`` whose axes lie in memory in ``order``."""
    memory = numbered(tuple(shape[axis] for axis in order))
    return memory.permute([order.index(axis) for axis in range(len(shape))])


def by_elements(weight: torch.Tensor, dim: int) -> torch.Tensor:
    """The matrix as the kernels index it, element by element."""
    view = matrix_view(weight, dim)
    memory = flat(weight)
    matrix = torch.empty(view.M, view.N)
    for m, n in itertools.product(range(view.M), range(view.N)):
        p, q = divmod(n, view.Q)
        run = n % (view.K * view.C)
        column = n if view.K == 1 else n - run + run % view.C * view.K + run // view.C
        matrix[m, column] = memory[(p * view.M + m) * view.Q + q]
    return matrix


@given(shapes, st.data())
def test_contiguous_weights_have_a_view_for_every_dim(shape, data):
    dim = data.draw(st.integers(0, len(shape) - 1))
    weight = numbered(shape)
    assert torch.equal(by_elements(weight, dim), as_matrix(weight, dim))


@pytest.mark.parametrize("shape", [(5, 3, 2, 4), (1, 3, 2, 4), (5, 1, 2, 4), (5, 3, 1, 1)])
@pytest.mark.parametrize("dim", range(4))
def test_channels_last_weights_have_a_view_for_every_dim(shape, dim):
    weight = numbered(shape).to(memory_format=torch.channels_last)
    assert torch.equal(by_elements(weight, dim), as_matrix(weight, dim))


@given(shapes, st.data())
def test_any_other_order_has_a_right_view_or_none(shape, data):
    order = tuple(data.draw(st.permutations(range(len(shape)))))
    dim = data.draw(st.integers(0, len(shape) - 1))
    weight = permuted(shape, order)
    if matrix_view(weight, dim) is not None:
        assert torch.equal(by_elements(weight, dim), as_matrix(weight, dim))
    dense, view = in_matrix_layout(weight, dim)
    assert torch.equal(dense, weight)
    assert view is not None


@given(shapes, st.data())
def test_vectors_go_to_memory_order_and_back(shape, data):
    order = tuple(data.draw(st.permutations(range(len(shape)))))
    dim = data.draw(st.integers(0, len(shape) - 1))
    weight, view = in_matrix_layout(permuted(shape, order), dim)
    v = torch.arange(float(view.N))
    assert torch.equal(view.columns_to_logical(view.columns_to_memory(v)), v)
    operand = view.operand(weight)
    first_row = operand[0] if operand.ndim == 2 else operand[:, 0].reshape(-1)
    assert torch.equal(view.columns_to_logical(first_row), as_matrix(weight, dim)[0])


def test_expanded_and_sliced_weights_are_made_contiguous():
    for weight in (torch.randn(4, 1).expand(4, 3), torch.randn(4, 6)[:, ::2]):
        assert matrix_view(weight, 0) is None
        dense, _ = in_matrix_layout(weight, 0)
        assert dense.is_contiguous()
        assert torch.equal(dense, weight)


def test_a_gradient_is_copied_only_into_another_layout():
    weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    view = matrix_view(weight, 0)
    same = torch.empty_like(weight)
    assert like_weight(same, weight, view, 0) is same
    other = torch.randn(4, 3, 2, 2)
    moved = like_weight(other, weight, view, 0)
    assert moved.stride() == weight.stride()
    assert torch.equal(moved, other)
