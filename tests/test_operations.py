"""Both backends against the float64 textbook definition, through the public function."""

import math

import pytest
import torch
import torch.nn.functional as F

from snorm_triton import reference
from snorm_triton.functional import spectral_normalize, state_dtype
from snorm_triton.ops import tiles

# name: shape, dim, memory format
LAYOUTS = {
    "linear": ((37, 53), 0, torch.contiguous_format),
    "linear-wide": ((3, 1031), 0, torch.contiguous_format),
    "linear-tall": ((1031, 3), 0, torch.contiguous_format),
    "linear-dim1": ((37, 53), 1, torch.contiguous_format),
    "conv": ((19, 7, 3, 3), 0, torch.contiguous_format),
    "conv-channels-last": ((19, 7, 3, 3), 0, torch.channels_last),
    "conv-dim1": ((19, 7, 3, 3), 1, torch.contiguous_format),
    "conv-dim1-channels-last": ((19, 7, 3, 3), 1, torch.channels_last),
    "conv-dim2-channels-last": ((19, 7, 3, 5), 2, torch.channels_last),
    "conv-dim3": ((19, 7, 3, 5), 3, torch.contiguous_format),
    "transposed-k2": ((11, 13, 2), 1, torch.contiguous_format),
    "transposed-k4": ((11, 13, 4, 4), 1, torch.contiguous_format),
    "transposed-channels-last": ((11, 13, 4, 4), 1, torch.channels_last),
    "transposed3d-channels-last": ((5, 6, 2, 3, 2), 1, torch.channels_last_3d),
    "conv3d-channels-last": ((6, 5, 2, 3, 2), 0, torch.channels_last_3d),
    "one-row": ((1, 37), 0, torch.contiguous_format),
    "one-column": ((37, 1), 0, torch.contiguous_format),
}
# relative errors of (sigma, W_sn, dW). float32 as promised; float64 as float32 scaled by the ratio
# of the roundings; in half precisions W_sn and dW round to the dtype, to 2^-11 and 2^-8 at best,
# and Triton's interpreter truncates to bfloat16 where a GPU rounds: twice that.
TOLERANCES = {
    torch.float32: (1e-6, 1e-6, 1e-5),
    torch.float64: (1e-14, 1e-14, 1e-13),
    torch.float16: (1e-6, 2**-11, 2**-10),
    torch.bfloat16: (1e-6, 2**-7, 2**-6),
}


def make_case(layout, dtype):
    shape, dim, memory_format = LAYOUTS[layout]
    weight = torch.randn(shape).to(dtype).contiguous(memory_format=memory_format)
    state = state_dtype(weight)
    u = F.normalize(torch.randn(shape[dim], dtype=state), dim=0)
    v = F.normalize(torch.randn(weight.numel() // shape[dim], dtype=state), dim=0)
    grad = torch.randn(shape).to(dtype)
    return weight.requires_grad_(), u, v, dim, grad


@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.usefixtures("nan_filled_memory")
def test_forward_and_backward_match_the_reference(layout, dtype, backend, relative_error):
    weight, u, v, dim, grad = make_case(layout, dtype)
    ours = spectral_normalize(weight, u, v, dim=dim, n_power_iterations=2, backend=backend)
    ours.weight_sn.backward(grad)

    exact = weight.detach().double().requires_grad_()
    expected = reference.spectral_normalize(exact, u, v, dim=dim, n_power_iterations=2)
    expected.weight_sn.backward(grad.double())

    sigma_error, forward_error, backward_error = TOLERANCES[dtype]
    assert relative_error(ours.sigma, expected.sigma) < sigma_error
    assert relative_error(ours.weight_sn, expected.weight_sn) < forward_error
    assert relative_error(weight.grad, exact.grad) < backward_error
    assert relative_error(ours.u, expected.u) < 10 * sigma_error
    assert relative_error(ours.v, expected.v) < 10 * sigma_error
    assert ours.weight_sn.dtype == weight.grad.dtype == dtype
    assert ours.weight_sn.stride() == weight.stride()


@pytest.mark.parametrize("scale", [1, 2.0**-12, 2.0**60])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_tiles_come_out_as_one_piece(layout, dtype, scale, monkeypatch, relative_error):
    weight, u, v, dim, grad = make_case(layout, dtype)
    if scale * weight.abs().max() > torch.finfo(dtype).max / 1e3:
        scale = 2.0**-6
    weight = (weight.detach() * scale).requires_grad_()
    results = []
    names = "ELEMENTS", "SUMMANDS", "BATCHED", "ALONG", "CACHE"
    as_they_are = tuple(getattr(tiles, name) for name in names)
    for sizes in (as_they_are, (64, *as_they_are[1:4], 0), (12, 3, 4, 5, 0)):
        for name, size in zip(names, sizes, strict=True):
            monkeypatch.setattr(tiles, name, size)
        ours = spectral_normalize(weight, u, v, dim=dim, backend="torch")
        (grad_weight,) = torch.autograd.grad(ours.weight_sn, weight, grad)
        results.append((ours.sigma, ours.u, ours.v, ours.weight_sn, grad_weight))
    sigma_error, forward_error, backward_error = TOLERANCES[dtype]
    bounds = (sigma_error, 10 * sigma_error, 10 * sigma_error, forward_error, backward_error)
    for (whole, *tiled), bound in zip(zip(*results, strict=True), bounds, strict=True):
        for each in tiled:
            assert relative_error(each, whole) < bound


def test_rows_too_wide_to_hold_on_chip_are_read_in_chunks(backend, relative_error):
    weight = torch.randn(3, 16411)
    u, v = F.normalize(torch.randn(3), dim=0), F.normalize(torch.randn(16411), dim=0)
    ours = spectral_normalize(weight, u, v, backend=backend)
    expected = reference.spectral_normalize(weight, u, v)
    assert relative_error(ours.sigma, expected.sigma) < 1e-6
    assert relative_error(ours.weight_sn, expected.weight_sn) < 1e-6
    assert relative_error(ours.v, expected.v) < 1e-5


def test_shares_that_a_half_weight_of_odd_rows_has_no_room_for(
    backend, monkeypatch, relative_error
):
    if backend == "triton":
        monkeypatch.setattr("snorm_triton.kernels.config.FEWEST_ROWS", 2)
    weight = torch.randn(3, 16411).bfloat16()
    u, v = F.normalize(torch.randn(3), dim=0), F.normalize(torch.randn(16411), dim=0)
    ours = spectral_normalize(weight, u, v, backend=backend)
    expected = reference.spectral_normalize(weight.float(), u, v)
    assert relative_error(ours.sigma, expected.sigma) < 1e-6
    assert relative_error(ours.weight_sn, expected.weight_sn) < 2**-8


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.usefixtures("nan_filled_memory")
def test_without_iterations_u_and_v_are_taken_as_given(layout, backend, relative_error):
    weight, u, v, dim, grad = make_case(layout, torch.float64)
    u, v = 0.3 * u, 1.7 * v
    ours = spectral_normalize(weight, u, v, dim=dim, n_power_iterations=0, backend=backend)
    ours.weight_sn.backward(grad)

    exact = weight.detach().requires_grad_()
    expected = reference.spectral_normalize(exact, u, v, dim=dim, n_power_iterations=0)
    expected.weight_sn.backward(grad)

    assert ours.u is u
    assert ours.v is v
    # u^T W v of random vectors cancels, which no algorithm escapes: 1e-13 leaves room for it.
    assert relative_error(ours.sigma, expected.sigma) < 1e-13
    assert relative_error(ours.weight_sn, expected.weight_sn) < 1e-13
    assert relative_error(weight.grad, exact.grad) < 1e-12


@pytest.mark.usefixtures("nan_filled_memory")
def test_the_smallest_weight_is_normalized_to_its_sign(backend):
    weight = torch.tensor([[-3.0]], requires_grad=True)
    one = torch.ones(1)
    ours = spectral_normalize(weight, one, one, backend=backend)
    ours.weight_sn.backward(torch.ones(1, 1))
    assert ours.weight_sn.item() == -1
    assert ours.sigma.item() == 3
    assert abs(weight.grad.item()) < 1e-7


def test_the_arguments_are_not_written(backend):
    weight, u, v, dim, _ = make_case("conv", torch.float32)
    before = [x.detach().clone() for x in (weight, u, v)]
    spectral_normalize(weight, u, v, dim=dim, n_power_iterations=3, backend=backend)
    for x, old in zip((weight, u, v), before, strict=True):
        assert torch.equal(x, old)


def test_the_gradient_may_come_in_any_layout(backend, relative_error):
    weight, u, v, dim, _ = make_case("conv-channels-last", torch.float32)
    spectral_normalize(weight, u, v, dim=dim, backend=backend).weight_sn.sum().backward()
    exact = weight.detach().double().requires_grad_()
    reference.spectral_normalize(exact, u, v, dim=dim).weight_sn.sum().backward()
    assert relative_error(weight.grad, exact.grad) < 1e-5


def test_a_weight_that_is_not_dense_is_copied(backend, relative_error):
    base = torch.randn(9, 14, requires_grad=True)
    u, v = F.normalize(torch.randn(9), dim=0), F.normalize(torch.randn(7), dim=0)
    ours = spectral_normalize(base[:, ::2], u, v, backend=backend)
    expected = reference.spectral_normalize(base[:, ::2], u, v)
    assert relative_error(ours.weight_sn, expected.weight_sn) < 1e-6
    ours.weight_sn.square().sum().backward()
    assert base.grad[:, 1::2].abs().sum() == 0


def test_complex_weights_use_the_complex_inner_product(relative_error):
    weight = torch.randn(6, 5, dtype=torch.complex64, requires_grad=True)
    u = F.normalize(torch.randn(6, dtype=torch.complex64), dim=0)
    v = F.normalize(torch.randn(5, dtype=torch.complex64), dim=0)
    ours = spectral_normalize(weight, u, v, n_power_iterations=60)
    assert abs(torch.linalg.matrix_norm(ours.weight_sn, 2).item() - 1) < 1e-5
    exact = weight.detach().to(torch.complex128).requires_grad_()
    expected = reference.spectral_normalize(exact, u, v, n_power_iterations=60)
    ours.weight_sn.abs().sum().backward()
    expected.weight_sn.abs().sum().backward()
    assert (weight.grad - exact.grad).norm() < 1e-5 * exact.grad.norm()


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (4, 0, 3)])
def test_empty_weights_stay_empty(shape, backend):
    weight = torch.empty(shape, requires_grad=True)
    u, v = torch.zeros(shape[0]), torch.zeros(math.prod(shape[1:]))
    ours = spectral_normalize(weight, u, v, backend=backend)
    (ours.weight_sn.sum() + ours.sigma).backward()
    assert ours.weight_sn.shape == weight.grad.shape == shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "shape",
    [(1000000, 1), (100000, 1), (1000000, 8), (8, 1000000), (40000, 1), (2, 100000, 4)],
    ids=str,
)
def test_long_sums_keep_their_digits(shape, dtype):
    weight = torch.rand(shape, dtype=torch.float64).to(dtype)  # which one singular value outweighs
    dim = shape.index(max(shape))
    matrix = weight.double().movedim(dim, -1).flatten(0, -2)
    expected = torch.linalg.eigvalsh(matrix @ matrix.mT)[-1].sqrt()
    for rows in {dim, shape.index(min(shape))}:
        sizes = weight.shape[rows], weight.numel() // weight.shape[rows]
        if rows != dim and weight.ndim > 2:
            continue  # another matrix
        u, v = (F.normalize(torch.ones(size), dim=0) for size in sizes)
        ours = spectral_normalize(weight, u, v, dim=rows, n_power_iterations=12, backend="torch")
        assert abs(ours.sigma.double() / expected - 1) < 2e-6
