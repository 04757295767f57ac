"""Estimate <= norm of the dense matrix <= upper bounds, for every kind of convolution."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import snorm_triton
from convolutions import KINDS, Kind, dense, identify
from snorm_triton.lipschitz import conv_norm, conv_norm_bound

TABLE = "norms of convolutions over the dense matrix's norm"


def exact(module: nn.Module, input_shape: tuple[int, ...]) -> Tensor:
    norm: Tensor = torch.linalg.matrix_norm(dense(module, input_shape), 2)
    return norm


@pytest.mark.parametrize("kind", KINDS, ids=identify)
def test_norm_is_between_estimate_and_bounds(kind: Kind, report_line) -> None:
    module = kind.make()
    norm = exact(module, kind.input_shape)
    with torch.no_grad():
        estimate = conv_norm(module, kind.input_shape) / norm
        bound = conv_norm_bound(module, kind.input_shape) / norm
        anywhere = conv_norm_bound(module) / norm
        unfolding = conv_norm_bound(module, kind.input_shape, method="unfolding") / norm
    report_line(
        TABLE,
        f"{kind.name:45s} conv_norm {estimate:.6f}  bound {bound:.4f}  any size {anywhere:.4f}  "
        f"unfolding {unfolding:.4f}",
    )
    assert 1 - 1e-4 <= estimate <= 1 + 1e-13
    assert bound >= 1
    assert unfolding >= 1
    assert anywhere >= bound * (1 - 1e-12)


def double(layer: type[nn.Module], *sizes: object, **options: object) -> nn.Module:
    return layer(*sizes, bias=False, dtype=torch.float64, **options)


TIGHT = {
    "Conv1d": (lambda: double(nn.Conv1d, 4, 4, 5, padding=2), (4, 96)),
    "Conv1d-dilated": (lambda: double(nn.Conv1d, 4, 4, 3, padding=2, dilation=2), (4, 128)),
    "Conv1d-stride-2": (lambda: double(nn.Conv1d, 4, 4, 5, padding=2, stride=2), (4, 128)),
    "Conv2d": (lambda: double(nn.Conv2d, 2, 2, 3, padding=1), (2, 24, 24)),
    "Conv2d-stride-2": (lambda: double(nn.Conv2d, 2, 4, 3, padding=1, stride=2), (2, 24, 24)),
    "Conv2d-4x4-stride-2": (lambda: double(nn.Conv2d, 2, 4, 4, padding=1, stride=2), (2, 24, 24)),
    "Conv2d-depthwise": (lambda: double(nn.Conv2d, 2, 4, 3, padding=1, groups=2), (2, 24, 24)),
    "Conv2d-1x1": (lambda: double(nn.Conv2d, 64, 64, 1), (64, 2, 2)),
    "Conv2d-circular": (
        lambda: double(nn.Conv2d, 2, 2, 3, padding=1, padding_mode="circular"),
        (2, 16, 16),
    ),
    "Conv2d-circular-stride-2": (
        lambda: double(nn.Conv2d, 2, 2, 3, padding=1, stride=2, padding_mode="circular"),
        (2, 16, 16),
    ),
    "ConvTranspose2d": (
        lambda: double(nn.ConvTranspose2d, 4, 2, 4, stride=2, padding=1),
        (4, 12, 12),
    ),
}


@pytest.mark.parametrize("name", TIGHT)
def test_bound_is_within_five_percent(name: str, report_line) -> None:
    make, input_shape = TIGHT[name]
    module = make()
    norm = exact(module, input_shape)
    with torch.no_grad():
        ratio = conv_norm_bound(module, input_shape) / norm
    report_line("bounds over the dense matrix's norm, larger images", f"{name:30s} {ratio:.4f}")
    assert 1 <= ratio < 1.05


def test_bound_is_tight_where_all_singular_values_are_equal() -> None:
    layer = double(nn.Conv2d, 512, 512, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(512)[:, :, None, None])
        assert 1 <= conv_norm_bound(layer) < 1.03


@pytest.mark.parametrize("size", [2, 3, 5, 8, 13])  # of 1 the output is empty
@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
def test_bound_without_a_shape_holds_for_any_image(mode: str, size: int) -> None:
    layer = double(nn.Conv1d, 2, 3, 4, padding=1, stride=2, padding_mode=mode)
    assert exact(layer, (2, size)) <= conv_norm_bound(layer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bound_holds_in_the_precision_of_the_weight(dtype: torch.dtype) -> None:
    layer = nn.Conv2d(6, 5, 2, stride=2, bias=False).to(dtype)  # its bound is its matrix's norm
    bound = conv_norm_bound(layer)
    assert bound.dtype == torch.float32
    norm = torch.linalg.matrix_norm(layer.weight.detach().double().flatten(1), 2)
    assert norm <= bound.double() <= norm * 1.01


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_no_power_leaves_the_range(scale: float) -> None:
    layer = nn.Conv2d(3, 3, 3, padding=1, bias=False)
    expected = [conv_norm(layer, (3, 8, 8)), conv_norm_bound(layer)]
    with torch.no_grad():
        layer.weight.mul_(scale)
    scaled = [conv_norm(layer, (3, 8, 8)), conv_norm_bound(layer)]
    torch.testing.assert_close([each / scale for each in scaled], expected)


def test_a_zero_weight_has_norm_zero_and_no_gradient() -> None:
    layer = nn.Conv2d(3, 3, 3, padding=1, bias=False)
    nn.init.zeros_(layer.weight)
    for norm in (conv_norm(layer, (3, 8, 8)), conv_norm_bound(layer, (3, 8, 8))):
        (gradient,) = torch.autograd.grad(norm, layer.weight)
        assert norm == 0
        assert (gradient == 0).all()


def test_bound_holds_where_the_taps_cancel() -> None:
    layer = double(nn.Conv2d, 1, 1, (3, 2), padding=(1, 1), padding_mode="circular")
    with torch.no_grad():
        weight = layer.weight - layer.weight.mean() + 1e-9  # on one pixel they are all summed
        layer.weight.copy_(weight)
    norm = exact(layer, (1, 1, 1))
    assert norm <= conv_norm_bound(layer, (1, 1, 1))


def test_a_convolution_that_reads_its_padding_alone_has_norm_zero() -> None:
    layer = nn.Conv1d(1, 1, 2, padding=2, dilation=4, bias=False)  # at -2 and 2, of one pixel
    assert conv_norm(layer, (1, 1)) == 0


def test_a_weight_that_is_not_finite_shows() -> None:
    layer = nn.Conv2d(3, 3, 3, padding=1, bias=False)
    with torch.no_grad():
        layer.weight[0, 0, 0, 0] = float("inf")
    assert conv_norm(layer, (3, 8, 8)).isnan()
    assert conv_norm_bound(layer).isnan()


def test_gradient_of_the_norm_is_that_of_the_dense_matrix() -> None:
    layer = double(nn.Conv2d, 2, 3, 3, padding=1, stride=2)
    (ours,) = torch.autograd.grad(conv_norm(layer, (2, 7, 6), tol=1e-12), layer.weight)
    basis = torch.eye(84, dtype=torch.float64).reshape(84, 2, 7, 6)
    matrix = layer(basis).flatten(1).T
    (dense_s,) = torch.autograd.grad(torch.linalg.matrix_norm(matrix, 2), layer.weight)
    torch.testing.assert_close(ours, dense_s, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("method", ["gram", "unfolding"])
def test_bound_is_differentiable(method: str) -> None:
    layer = double(nn.Conv2d, 2, 4, 3, padding=1, stride=2, groups=2)

    def bound(weight: Tensor) -> Tensor:
        other = double(nn.Conv2d, 2, 4, 3, padding=1, stride=2, groups=2)
        del other.weight
        other.weight = weight
        return conv_norm_bound(other, method=method)

    assert torch.autograd.gradcheck(bound, layer.weight.detach().requires_grad_())


def test_linear_layers_are_matrices() -> None:
    layer = double(nn.Linear, 7, 5)
    norm = torch.linalg.matrix_norm(layer.weight.detach(), 2)
    torch.testing.assert_close(conv_norm(layer), norm)
    assert norm <= conv_norm_bound(layer) <= norm * 1.01


def test_an_orthogonal_start_does_not_stall() -> None:
    # Two channels apart, the second larger: a start in the first would stay there.
    layer = double(nn.Conv1d, 2, 2, 1, groups=2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, 1.5])[:, None, None])
    torch.testing.assert_close(conv_norm(layer, (2, 500)), torch.tensor(1.5, dtype=torch.float64))


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    conv_norm(nn.Conv1d(1, 1, 1, bias=False, device="meta").to_empty(device="cpu"), (1, 4))
    assert torch.equal(before, torch.get_rng_state())


def test_too_few_iterations_are_told() -> None:
    layer = nn.Conv2d(4, 4, 3, padding=1)
    with pytest.warns(RuntimeWarning, match="2 iterations reached an error of .*max_iterations"):
        conv_norm(layer, (4, 20, 20), max_iterations=2)


NORMALIZED = {
    "ours": snorm_triton.spectral_norm,
    "our weight norm": snorm_triton.weight_norm,
    "torch's": nn.utils.parametrizations.spectral_norm,
    "torch's hook": nn.utils.spectral_norm,
}


@pytest.mark.parametrize("normalize", NORMALIZED.values(), ids=NORMALIZED)
def test_a_normalized_weight_is_read_as_evaluation_has_it(normalize) -> None:
    layer = normalize(nn.Conv2d(3, 4, 3, padding=1, bias=False))
    x = torch.randn(2, 3, 6, 6)
    layer(x)
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    bound = conv_norm_bound(layer, (3, 6, 6))
    norm = conv_norm(layer, (3, 6, 6))
    assert layer.training
    for name, value in layer.state_dict().items():
        assert torch.equal(value, state[name]), name
    bound.backward()
    assert any(parameter.grad is not None for parameter in layer.parameters())
    layer.eval()
    layer(x)
    plain = nn.Conv2d(3, 4, 3, padding=1, bias=False)
    with torch.no_grad():
        plain.weight.copy_(layer.weight)
    torch.testing.assert_close(norm, conv_norm(plain, (3, 6, 6)))


@pytest.mark.parametrize("measure", [conv_norm, conv_norm_bound])
def test_what_cannot_be_measured_is_refused(measure) -> None:
    with pytest.raises(
        TypeError, match="conv must be a convolution of torch or a Linear, got ReLU"
    ):
        measure(nn.ReLU(), (3,))
    with pytest.raises(ValueError, match=r"weight must be real, that of Conv1d is .*complex64"):
        measure(nn.Conv1d(2, 2, 3, dtype=torch.complex64), (2, 9))
    with pytest.raises(ValueError, match="conv must have seen its first input, LazyConv1d has"):
        measure(nn.LazyConv1d(2, 3), (2, 9))
    with pytest.raises(ValueError, match="input_shape must begin with 2 channels"):
        measure(nn.Conv1d(2, 2, 3), (3, 9))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: conv_norm(c), "input_shape must be given for a convolution"),
        (lambda c: conv_norm(c, (2, 9), tol=0), "tol must be positive, got 0"),
        (lambda c: conv_norm(c, (2, 9), max_iterations=0), "max_iterations must be at least 1"),
        (lambda c: conv_norm_bound(c, n_iterations=-1), "n_iterations must not be negative"),
        (lambda c: conv_norm_bound(c, method="power"), "method must be one of gram, unfolding"),
    ],
)
def test_a_wrong_argument_is_named(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call(nn.Conv1d(2, 2, 3))


def test_bound_of_a_kernel_with_a_peak_between_frequencies() -> None:
    # The symbol of 1, z, ..., z^(k-1) turned by any angle: its peak lies anywhere on the circle.
    k = 4
    for phase in torch.linspace(0, 3, 40, dtype=torch.float64):
        turns = torch.arange(k, dtype=torch.float64) * phase
        turned = torch.stack([turns.cos(), -turns.sin(), turns.sin(), turns.cos()], 1)
        layer = double(nn.Conv1d, 2, 2, k)
        with torch.no_grad():
            layer.weight.copy_(turned.reshape(k, 2, 2).permute(1, 2, 0))
            assert conv_norm_bound(layer) >= k


def test_bounds_below_the_normal_numbers_are_rounded_up():
    for seed in range(100):
        torch.manual_seed(seed)
        layer = nn.Linear(1 + seed % 3, 1 + seed % 4, bias=False)
        layer.weight.data = torch.randn_like(layer.weight) * 2.0**-127
        norm = torch.linalg.matrix_norm(layer.weight.detach().double(), 2)
        assert norm <= conv_norm_bound(layer).double()
