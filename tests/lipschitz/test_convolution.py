"""The map of a convolution is the layer's own, its adjoint the transpose of the dense matrix."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from convolutions import KINDS, Kind, dense, identify
from snorm_triton.ops.convolution import Convolution

each_kind = pytest.mark.parametrize("kind", KINDS, ids=identify)
EXACT = 1e-13  # float64, sums of at most some hundred products of numbers around 1


def randn(shape: tuple[int, ...], **options: object) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, **options)


@each_kind
def test_forward_and_adjoint_are_those_of_the_dense_matrix(kind: Kind, report_line) -> None:
    module = kind.make()
    matrix = dense(module, kind.input_shape)
    conv = Convolution.of(module, kind.input_shape)
    n, m = matrix.shape[1], matrix.shape[0]
    assert m == torch.Size(conv.output_shape).numel()
    with torch.no_grad():
        ours = conv.forward(torch.eye(n, dtype=torch.float64).reshape(n, *conv.input_shape))
        adjoint = conv.adjoint(torch.eye(m, dtype=torch.float64).reshape(m, *conv.output_shape))
    scale = matrix.abs().max()
    error = (ours.flatten(1).T - matrix).abs().max() / scale
    adjoint_error = (adjoint.flatten(1) - matrix).abs().max() / scale
    report_line(
        "a convolution's map beside its dense matrix (largest error over largest entry)",
        f"{kind.name:45s} forward {error:.1e}  adjoint {adjoint_error:.1e}",
    )
    assert error < EXACT
    assert adjoint_error < EXACT


@each_kind
def test_adjoint_is_the_adjoint(kind: Kind) -> None:
    conv = Convolution.of(kind.make(), kind.input_shape)
    u, v = randn(conv.output_shape), randn(conv.input_shape)
    with torch.no_grad():
        there, back = conv.inner(u, v), (conv.adjoint(u) * v).sum()
    torch.testing.assert_close(there, back, rtol=0, atol=1e-13 * float(u.norm() * v.norm()))


@each_kind
def test_weight_gradient_is_that_of_autograd(kind: Kind) -> None:
    module = kind.make()
    conv = Convolution.of(module, kind.input_shape)
    u, v = randn((3, *conv.output_shape)), randn((3, *conv.input_shape))
    (expected,) = torch.autograd.grad((u * conv.forward(v)).sum(), module.weight)
    torch.testing.assert_close(conv.weight_gradient(u, v), expected)


@pytest.mark.parametrize(
    "name",
    ["Conv1d-same-even", "Conv2d-reflect-same-even", "Conv1d-circular", "ConvTranspose2d-uneven"],
)
def test_all_of_it_is_twice_differentiable(name: str) -> None:
    kind = next(each for each in KINDS if each.name == name)
    module = kind.make()
    conv = Convolution.of(module, kind.input_shape)
    u = randn(conv.output_shape, requires_grad=True)
    v = randn(conv.input_shape, requires_grad=True)

    def all_of_it(weight, u, v):
        conv = Convolution.of(module, kind.input_shape, weight)
        return conv.forward(v), conv.adjoint(u), conv.weight_gradient(u, v)

    inputs = (module.weight.detach().requires_grad_(), u, v)
    assert torch.autograd.gradcheck(all_of_it, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(all_of_it, inputs, fast_mode=True)


def test_a_complex_convolution_has_its_adjoint() -> None:
    module = nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect", dtype=torch.complex128)
    conv = Convolution.of(module, (2, 5, 6))
    u = torch.randn(conv.output_shape, dtype=torch.complex128)
    v = torch.randn(conv.input_shape, dtype=torch.complex128)
    with torch.no_grad():
        torch.testing.assert_close(conv.inner(u, v), (conv.adjoint(u).conj() * v).sum())


def test_leading_dimensions_are_kept() -> None:
    conv = Convolution.of(nn.Conv1d(2, 3, 3, stride=2), (2, 9))
    v = torch.randn(4, 5, 2, 9)
    u = conv.forward(v)
    assert u.shape == (4, 5, 3, 4)
    assert conv.adjoint(u).shape == v.shape
    torch.testing.assert_close(conv.adjoint(u)[1, 2], conv.adjoint(u[1, 2]))


@pytest.mark.parametrize(
    ("module", "input_shape", "message"),
    [
        (nn.Conv2d(3, 4, 3), (3, 9), r"input_shape must have 3 sizes for Conv2d.*got \(3, 9\)"),
        (nn.Conv2d(3, 4, 3), (1, 3, 9, 9), "input_shape must have 3 sizes"),
        (nn.ConvTranspose1d(3, 4, 3), (4, 9), "input_shape must begin with 3 channels"),
        (nn.Conv1d(3, 4, 3), (3, 2), "input_shape is too small .* its output is empty"),
        (nn.Conv1d(3, 4, 3), (3, 0), "input_shape is too small"),
        (nn.ConvTranspose1d(3, 4, 3, padding=2), (3, 1), "input_shape is too small"),
        (
            nn.Conv1d(3, 4, 3, padding=2, padding_mode="reflect"),
            (3, 2),
            "input_shape is too small .* reflect padding needs more",
        ),
        (nn.Conv1d(3, 4, 3, padding=3, padding_mode="circular"), (3, 2), "input_shape is too"),
    ],
)
def test_a_wrong_input_shape_is_named(module, input_shape, message) -> None:
    with pytest.raises(ValueError, match=message):
        Convolution.of(module, input_shape)


def test_no_convolution_is_refused() -> None:
    with pytest.raises(TypeError, match="module must be a convolution of torch, got Linear"):
        Convolution.of(nn.Linear(3, 3), (3, 4))
    with pytest.raises(ValueError, match="module must have seen its first input"):
        Convolution.of(nn.LazyConv1d(3, 3), (3, 4))


def test_compiled_in_one_graph() -> None:
    conv = Convolution.of(nn.Conv1d(2, 3, 4, padding="same", padding_mode="circular"), (2, 9))
    compiled = torch.compile(
        lambda v: conv.adjoint(conv.forward(v)), fullgraph=True, backend="eager"
    )
    v = torch.randn(2, 9)
    torch.testing.assert_close(compiled(v), conv.adjoint(conv.forward(v)))
