"""The operations of a backend, each with a small case and its distance from the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import reference
from ..functional import matrix_shape, state_dtype
from ..ops.backend import Backend
from ..ops.calls import Call, Evaluate, GradientCall, Iterate, Replay
from ..ops.matrix_view import in_matrix_layout
from ..ops.row_scaling import RowScaling, RowScalingGradient

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
EPS = 1e-12


class Shape(NamedTuple):
    """Of a weight, the dimension of its outputs, and how it lies in memory."""

    sizes: tuple[int, ...]
    dim: int = 0
    memory_format: torch.memory_format = torch.contiguous_format


SMALL = Shape((12, 5, 3, 3))
ROWS = Shape((6, 2100))
CHUNKS = Shape((280, 9, 3, 2), 1)
FEW_LONG_ROWS = Shape((2, 20000))
CHANNELS_LAST = Shape((6, 5, 3, 3), 0, torch.channels_last)
MODEL = (SMALL, Shape((10, 70)), Shape((9, 7, 3, 3), 1), CHANNELS_LAST)

Expected = Sequence[tuple[Tensor, Tensor]]
Run = Callable[[Backend, list[Tensor], list[int]], Expected]


class Operation(NamedTuple):
    """What a backend is asked for, the kernels that Triton launches for it, and a case of it.

    ``run`` returns pairs: what the backend gave, and what the reference has in float64.
    """

    name: str
    kernels: tuple[str, ...]
    shapes: tuple[Shape, ...]
    run: Run

    def error(self, backend: Backend, device: torch.device, dtype: torch.dtype) -> float:
        """The largest relative error of its results, in norm; NaN where a result is not finite."""
        random = torch.Generator().manual_seed(0)
        weights = [
            torch.randn(shape.sizes, generator=random)
            .to(device, dtype)
            .contiguous(memory_format=shape.memory_format)
            for shape in self.shapes
        ]
        pairs = self.run(backend, weights, [shape.dim for shape in self.shapes])
        errors = [relative_error(result, expected) for result, expected in pairs]
        return float(torch.tensor(errors, dtype=torch.float64).max())  # of NaN it is NaN


def tolerance(dtype: torch.dtype) -> float:
    """What rounding explains: of long sums in the dtype of sigma, and of results in ``dtype``."""
    wide = torch.promote_types(dtype, torch.float32)
    rounding = 2 * torch.finfo(dtype).eps if dtype != wide else 0.0
    return 80 * torch.finfo(wide).eps + rounding


def relative_error(result: Tensor, expected: Tensor) -> float:
    """In norm; of a result that may have another shape of as many elements."""
    expected = expected.detach().double()
    difference = result.detach().double().reshape(expected.shape) - expected
    return float(difference.norm() / expected.norm())


def vectors_of(weight: Tensor, dim: int, iterations: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """u, v and sigma of a weight after so many iterations from all ones."""
    M, N = matrix_shape(weight, dim)
    ones = torch.ones(M, device=weight.device), torch.ones(N, device=weight.device)
    found = reference.spectral_normalize(weight, *ones, dim=dim, n_power_iterations=iterations)
    u, v, sigma = (x.to(state_dtype(weight)) for x in found[1:])
    return u, v, sigma


def iterate(backend: Backend, weights: list[Tensor], dims: list[int]) -> Expected:
    calls, expected = [], list[Tensor]()
    for weight, dim in zip(weights, dims, strict=True):
        u, v, _ = vectors_of(weight, dim)
        dense, view = in_matrix_layout(weight, dim)
        calls.append(Call(dense, view, u, v, Iterate(1), weight.dtype))
        expected += reference.spectral_normalize(weight, u, v, dim=dim, n_power_iterations=1)
    return normalized(backend, calls, expected)


def evaluate(backend: Backend, weights: list[Tensor], dims: list[int]) -> Expected:
    calls, expected = [], list[Tensor]()
    for weight, dim in zip(weights, dims, strict=True):
        u, v, _ = vectors_of(weight, dim, 2)
        u, v = 0.3 * u, 1.7 * v
        dense, view = in_matrix_layout(weight, dim)
        calls.append(Call(dense, view, u, v, Evaluate(EPS), weight.dtype))
        expected += reference.spectral_normalize(weight, u, v, dim=dim, n_power_iterations=0)
    return normalized(backend, calls, expected)


def replay(backend: Backend, weights: list[Tensor], dims: list[int]) -> Expected:
    calls, expected = [], list[Tensor]()
    for weight, dim in zip(weights, dims, strict=True):
        u, v, sigma = vectors_of(weight, dim, 2)
        dense, view = in_matrix_layout(weight, dim)
        calls.append(Call(dense, view, u, v, Replay(sigma), weight.dtype))
        expected += [weight.double() / sigma.double(), u, v, sigma]
    return normalized(backend, calls, expected)


def normalized(backend: Backend, calls: list[Call], expected: list[Tensor]) -> Expected:
    one = len(calls) == 1
    results = [backend.normalize(*calls[0])] if one else backend.normalize_together(calls)
    return list(zip((x for each in results for x in each[:4]), expected, strict=True))


def gradient(backend: Backend, weights: list[Tensor], dims: list[int]) -> Expected:
    calls, expected = [], list[Tensor]()
    for weight, dim in zip(weights, dims, strict=True):
        u, v, sigma = vectors_of(weight, dim, 2)
        dense, view = in_matrix_layout(weight, dim)
        grad = weight.flip(0)
        calls.append(GradientCall(grad, dense, view, u, v, sigma))
        exact = weight.double().requires_grad_()
        found = reference.spectral_normalize(exact, u, v, dim=dim, n_power_iterations=0)
        expected += torch.autograd.grad(found.weight_sn, exact, grad.double())
    one = len(calls) == 1
    together = backend.rescale_backward_together
    results = [backend.rescale_backward(*calls[0])] if one else together(calls)
    return list(zip((each.weight for each in results), expected, strict=True))


def scale_rows(backend: Backend, weights: list[Tensor], dims: list[int]) -> Expected:
    calls, expected = [], list[Tensor]()
    for weight, dim in zip(weights, dims, strict=True):
        dense, view = in_matrix_layout(weight, dim)
        g = lengths_of(weight, dim)
        calls.append(RowScaling(dense, view, g, weight.dtype))
        expected += reference.weight_normalize(weight, g, dim=dim)
    one = len(calls) == 1
    results = [backend.scale_rows(*calls[0])] if one else backend.scale_rows_together(calls)
    return list(zip((x for each in results for x in each), expected, strict=True))


def scale_rows_gradient(backend: Backend, weights: list[Tensor], dims: list[int]) -> Expected:
    calls, expected = [], list[Tensor]()
    for weight, dim in zip(weights, dims, strict=True):
        dense, view = in_matrix_layout(weight, dim)
        g, grad = lengths_of(weight, dim), weight.flip(0)
        norms = reference.weight_normalize(weight, g, dim=dim).norms.to(state_dtype(weight))
        calls.append(RowScalingGradient(grad, dense, view, g, norms))
        exact, exact_g = weight.double().requires_grad_(), g.double().requires_grad_()
        scaled = reference.weight_normalize(exact, exact_g, dim=dim).weight
        expected += torch.autograd.grad(scaled, (exact, exact_g), grad.double())
    one, together = len(calls) == 1, backend.scale_rows_backward_together
    results = [backend.scale_rows_backward(*calls[0])] if one else together(calls)
    return list(zip((x for each in results for x in each), expected, strict=True))


def lengths_of(weight: Tensor, dim: int) -> Tensor:
    """Norms to scale the rows to, of shape (M,)."""
    M, _ = matrix_shape(weight, dim)
    return torch.linspace(0.5, 2, M, device=weight.device).to(weight.dtype)


# What is asked for, on which weights, and the kernels that Triton launches for it.
_CASES: dict[str, tuple[Run, tuple[Shape, ...], str]] = {
    "power iteration, small": (iterate, (SMALL,), "normalize_small"),
    "power iteration, rows": (iterate, (ROWS,), "power_rows reduce_partials finish_iteration"),
    "power iteration, runs": (iterate, (CHUNKS,), "power_chunked reduce_partials finish_iteration"),
    "evaluation": (evaluate, (ROWS,), "estimate_parts finish_estimate"),
    "replay": (replay, (ROWS,), "divide_and_copy_state"),
    "gradient, small": (gradient, (SMALL,), "rescale_backward_small"),
    "gradient": (gradient, (CHUNKS,), "grad_dot grad_apply"),
    "power iteration, a model": (iterate, MODEL, "foreach_power foreach_reduce foreach_finish"),
    "evaluation, a model": (evaluate, MODEL, "foreach_estimate_parts foreach_finish_estimate"),
    "replay, a model": (replay, MODEL, "foreach_divide_and_copy_state"),
    "gradient, a model": (gradient, MODEL, "foreach_grad_dot foreach_grad_apply"),
    "weight norm": (scale_rows, (SMALL,), "scale_rows_at_once"),
    "weight norm, long rows": (scale_rows, (FEW_LONG_ROWS,), "sum_squares scale_rows_of_parts"),
    "weight norm, a model": (scale_rows, MODEL, "foreach_scale_rows"),
    "its gradient": (scale_rows_gradient, (SMALL,), "differentiate_rows"),
    "its gradient, long rows": (
        scale_rows_gradient,
        (FEW_LONG_ROWS,),
        "sum_products differentiate_rows_of_parts",
    ),
    "its gradient, a model": (scale_rows_gradient, MODEL, "foreach_differentiate_rows"),
}
OPERATIONS = tuple(
    Operation(name, tuple(kernels.split()), shapes, run)
    for name, (run, shapes, kernels) in _CASES.items()
)
