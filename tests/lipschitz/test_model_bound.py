"""A model's bound: no less than the slope of the model between any samples, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import pytest
import torch
from torch import Tensor, nn

import snorm_triton
from snorm_triton.lipschitz import (
    Concatenation,
    Residual,
    conv_norm_bound,
    model_bound,
)
from snorm_triton.lipschitz.layers import FACTORS


def jacobian_norm(model: nn.Module, x: Tensor) -> float:
    """The norm of the derivative at ``x``, a sample without a batch: a bound from below."""
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x[None])[0], x)
    return float(torch.linalg.matrix_norm(jacobian.reshape(-1, x.numel()), 2))


def spread(shape: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [3 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]


# A layer, an input's shape, and whether the factor is the norm itself.
LINEAR_LAYERS = {
    "AvgPool1d": (nn.AvgPool1d(2), (3, 8), True),
    "AvgPool2d": (nn.AvgPool2d(2), (2, 6, 6), True),
    "AvgPool2d-overlap": (nn.AvgPool2d(3, 1, 1), (1, 7, 6), False),
    "AvgPool2d-alone": (nn.AvgPool2d(3, 2, 1, True, False), (1, 8, 6), False),
    "AvgPool2d-divisor": (nn.AvgPool2d(2, 1, 0, divisor_override=3), (1, 6, 5), False),
    "AvgPool3d-divisor": (nn.AvgPool3d(2, 2, 0, True, divisor_override=-5), (1, 3, 4, 4), False),
    "AvgPool3d": (nn.AvgPool3d((1, 2, 2)), (2, 2, 4, 4), True),
    "AdaptiveAvgPool1d": (nn.AdaptiveAvgPool1d(3), (2, 7), False),
    "AdaptiveAvgPool2d": (nn.AdaptiveAvgPool2d(1), (2, 5, 4), True),
    "AdaptiveAvgPool2d-uneven": (nn.AdaptiveAvgPool2d((None, 2)), (2, 5, 4), True),
    "Upsample": (nn.Upsample(scale_factor=2), (2, 3, 4), True),
    "Upsample-exact": (nn.Upsample(size=7, mode="nearest-exact"), (2, 3), True),
    "Upsample-bilinear": (
        nn.Upsample(scale_factor=(2, 3), mode="bilinear", align_corners=False),
        (2, 3, 4),
        False,
    ),
    "UpsamplingBilinear2d": (nn.UpsamplingBilinear2d(scale_factor=2), (2, 3, 4), False),
    "ZeroPad2d": (nn.ZeroPad2d((1, -1, 0, 2)), (2, 3, 4), True),
    "ReflectionPad2d": (nn.ReflectionPad2d((1, 2, 0, 1)), (2, 3, 4), True),
    "ReplicationPad1d": (nn.ReplicationPad1d((1, 3)), (2, 4), True),
    "CircularPad2d": (nn.CircularPad2d((0, 1, 2, 2)), (2, 3, 4), True),
    "PixelShuffle": (nn.PixelShuffle(2), (4, 3, 4), True),
    "PixelUnshuffle": (nn.PixelUnshuffle(2), (2, 4, 4), True),
    "ChannelShuffle": (nn.ChannelShuffle(2), (4, 3), True),
    "Flatten": (nn.Flatten(), (2, 3), True),
    "Unflatten": (nn.Unflatten(1, (2, 3)), (6,), True),
    "Identity": (nn.Identity(), (3,), True),
    "Dropout": (nn.Dropout().eval(), (3,), True),
    "BatchNorm2d": (nn.BatchNorm2d(3).double().eval(), (3, 2, 2), True),
}


@pytest.mark.parametrize("name", LINEAR_LAYERS)
def test_linear_layers_have_their_norm(name: str) -> None:
    layer, shape, is_exact = LINEAR_LAYERS[name]
    if isinstance(layer, nn.BatchNorm2d):
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([1.0, -3.0, 2.0]))
            layer.running_var.copy_(torch.tensor([1.0, 2.0, 0.5]))
    norm = jacobian_norm(layer, spread(shape)[0])
    bound = float(model_bound(layer, shape).detach())
    assert norm <= bound * (1 + 1e-6)
    if is_exact:
        assert bound == pytest.approx(norm, rel=1e-6)


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.MaxPool2d(2), (3, 8, 8), 1),
        (nn.MaxPool1d(3, 2, 1), (3, 8), sqrt(2)),
        (nn.MaxPool2d(3, (1, 2)), (1, 8, 8), sqrt(6)),
        (nn.MaxPool1d(3, 2, dilation=2), (1, 12), sqrt(3)),
        (nn.AdaptiveMaxPool2d((3, None)), (1, 7, 2), sqrt(2)),
    ],
)
def test_max_pooling_counts_the_windows_of_a_pixel(layer, shape, expected) -> None:
    assert float(model_bound(layer, shape).detach()) == pytest.approx(expected)
    peak = torch.zeros(shape, dtype=torch.float64)
    steepest = 0.0
    for place in range(peak.numel()):
        x = peak.clone().view(-1).index_fill(0, torch.tensor(place), 1.0).view(shape)
        steepest = max(steepest, float(layer(x[None]).norm() / x.norm()))
    assert steepest == pytest.approx(expected)


ACTIVATIONS = [
    nn.ReLU(),
    nn.ReLU6(),
    nn.Hardtanh(),
    nn.LeakyReLU(0.2),
    nn.LeakyReLU(-3.0),
    nn.PReLU(init=1.5),
    nn.RReLU(),
    nn.Tanh(),
    nn.Sigmoid(),
    nn.Hardsigmoid(),
    nn.Hardswish(),
    nn.LogSigmoid(),
    nn.Softsign(),
    nn.Softshrink(),
    nn.Tanhshrink(),
    nn.ELU(),
    nn.ELU(2.5),
    nn.CELU(0.3),
    nn.SELU(),
    nn.SiLU(),
    nn.GELU(),
    nn.GELU("tanh"),
    nn.Mish(),
    nn.Softplus(),
    nn.Softplus(3.0),
]


@pytest.mark.parametrize("layer", ACTIVATIONS, ids=str)
def test_activations_have_their_largest_slope(layer: nn.Module) -> None:
    layer = layer.double().eval()
    x = torch.linspace(-12, 12, 2_400_001, dtype=torch.float64)
    with torch.no_grad():
        y = layer(x)
    slope = float(((y[1:] - y[:-1]) / (x[1:] - x[:-1])).abs().max())
    bound = float(model_bound(layer, (1,)).detach())
    assert slope <= bound * (1 + 1e-8)
    assert bound == pytest.approx(slope, rel=2e-5)


def test_every_layer_of_the_table_is_tested() -> None:
    tested = {type(layer) for layer, *_ in LINEAR_LAYERS.values()}
    tested |= {type(layer) for layer in ACTIVATIONS}
    names = {kind.__name__.rstrip("123d") for kind in tested}
    names |= {"MaxPool", "AdaptiveMaxPool", "AlphaDropout", "FeatureAlphaDropout", "ConstantPa"}
    untested = {kind.__name__ for kind in FACTORS if kind.__name__.rstrip("123d") not in names}
    assert untested == set()


def residual_network() -> nn.Module:
    """Every kind of thing there is, 2 x 8 x 8 in."""
    block = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(4), nn.SiLU()
    )
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"),
        Residual(block),
        Residual(nn.Conv2d(4, 6, 3, 2, 1), nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(4, 6, 1))),
        nn.GELU(),
        Concatenation(nn.Conv2d(6, 2, 3, padding=1, groups=2), nn.MaxPool2d(3, 1, 1)),
        nn.ConvTranspose2d(8, 2, 4, 2, 1),
        nn.Flatten(),
        nn.Linear(128, 5),
    )


def test_a_model_is_no_steeper_than_its_bound() -> None:
    model = residual_network().double().eval()
    bound = model_bound(model, (2, 8, 8))
    steepest = max(jacobian_norm(model, x) for x in spread((2, 8, 8)))
    assert steepest <= float(bound.detach())
    bound.backward()
    assert model[0].weight.grad is not None


def test_products_sums_and_roots_of_squares() -> None:
    a, b = nn.Linear(3, 3), nn.Linear(3, 4)
    of_a, of_b = conv_norm_bound(a), conv_norm_bound(b)
    compare = torch.testing.assert_close
    compare(model_bound(nn.Sequential(a, nn.Sequential(nn.ReLU(), b)), (3,)), of_a * of_b)
    compare(model_bound(Residual(a), (3,)), of_a + 1)
    compare(model_bound(Residual(a, a), (3,)), 2 * of_a)
    compare(model_bound(Concatenation(a, b), (3,)), (of_a**2 + of_b**2) ** 0.5)
    compare(model_bound(nn.Sequential(a, a), (3,)), of_a**2)
    assert model_bound(nn.Sequential(), (3,)) == 1


def test_a_linear_layer_takes_any_dimensions_before_its_features() -> None:
    layer = nn.Linear(3, 2)
    torch.testing.assert_close(model_bound(layer, (5, 3)), conv_norm_bound(layer))


def test_normalized_models_are_left_as_they_were() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))
    snorm_triton.apply_spectral_norm(model)
    model(torch.randn(2, 2, 6, 6))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    bound = model_bound(model, (2, 6, 6))
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert model.training
    snorm_triton.fold(model)
    torch.testing.assert_close(model_bound(model, (2, 6, 6)), bound)


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 100 * super().forward(x)


class Named(nn.Sequential):
    """A Sequential of another name is one."""


def test_subclasses_count_where_they_compute_the_same() -> None:
    layer = nn.Linear(2, 2)
    torch.testing.assert_close(model_bound(Named(layer), (2,)), conv_norm_bound(layer))


def patched(layer: nn.Module) -> nn.Module:
    layer.forward = lambda x: 2 * x
    return layer


@pytest.mark.parametrize(
    ("make", "shape", "message"),
    [
        (lambda: nn.LayerNorm(3), (3,), r"1\.0 \(LayerNorm\): a module of this type has no bound"),
        (lambda: nn.BatchNorm1d(3), (3,), r"1\.0 \(BatchNorm1d\): it depends on the batch in tra"),
        (lambda: nn.BatchNorm1d(3, track_running_stats=False).eval(), (3,), "no running stat"),
        (lambda: nn.BatchNorm1d(4).eval(), (3,), r"takes 4 channels, got shape \(3,\)"),
        (lambda: nn.Dropout(), (3,), r"1\.0 \(Dropout\): it drops in training"),
        (lambda: nn.Flatten(0), (3,), "start_dim must leave the batch alone"),
        (lambda: nn.Flatten(-2), (3,), "start_dim must leave the batch alone, got -2"),
        (lambda: nn.Unflatten(0, (1, 1)), (3,), "dim must leave the batch alone, got 0"),
        (lambda: nn.CELU(-1.0), (3,), "alpha must be positive"),
        (lambda: nn.AvgPool2d(2), (4, 4), r"takes 3 dimensions and the batch, got shape \(4, 4\)"),
        (lambda: nn.ReflectionPad1d(1), (4,), "takes 2 dimensions and the batch"),
        (lambda: nn.Softplus(threshold=5), (3,), "threshold must be at least 20"),
        (lambda: nn.Upsample(scale_factor=2, mode="bicubic"), (1, 3, 3), "mode must be nearest"),
        (lambda: Scaled(3, 3), (3,), r"1\.0 \(Scaled\): a module of this type has no bound"),
        (lambda: patched(nn.Linear(3, 3)), (3,), r"1\.0 \(Linear\): a module of this type"),
        (lambda: patched(nn.ReLU()), (3,), r"1\.0 \(ReLU\): a module of this type has no bound"),
        (lambda: nn.Linear(4, 3), (3,), r"1\.0 \(Linear\): takes 4 features, got shape \(3,\)"),
        (lambda: nn.Conv1d(4, 3, 3), (3, 9), r"1\.0 \(Conv1d\): input_shape must begin with 4"),
        (lambda: nn.MaxPool2d(9), (1, 3, 3), r"1\.0 \(MaxPool2d\): "),
        (lambda: nn.MaxPool1d(2, return_indices=True), (1, 4), "return_indices must be False"),
        (lambda: Residual(nn.Linear(3, 2)), (3,), r"1\.0 \(Residual\): branch and shortcut must"),
        (lambda: Residual(nn.GRU(3, 3)), (3,), r"1\.0\.branch \(GRU\)"),
        (
            lambda: Concatenation(nn.Identity(), nn.MaxPool1d(2)),
            (1, 4),
            r"1\.0 \(Concatenation\): outputs must differ in their channels alone",
        ),
        (lambda: nn.ModuleList([nn.ReLU()]), (3,), r"1\.0 \(ModuleList\)"),
    ],
)
def test_what_has_no_bound_is_refused_by_its_path(
    make: Callable[[], nn.Module], shape: tuple[int, ...], message: str
) -> None:
    model = nn.Sequential(nn.Identity(), nn.Sequential(make()))
    with pytest.raises(ValueError, match=message):
        model_bound(model, shape)


def test_arguments_are_checked() -> None:
    with pytest.raises(TypeError, match=r"model must be a .*Module, got int"):
        model_bound(3, (3,))
    with pytest.raises(ValueError, match=r"model \(GRU\): a module of this type has no bound"):
        model_bound(nn.GRU(3, 3), (3,))
    with pytest.raises(ValueError, match="branches must hold at least one module"):
        Concatenation()


def test_containers_compute_sums_and_concatenations() -> None:
    a, b, x = nn.Linear(3, 3), nn.Linear(3, 2), torch.randn(4, 3)
    torch.testing.assert_close(Residual(a)(x), a(x) + x)
    torch.testing.assert_close(Concatenation(a, b)(x), torch.cat([a(x), b(x)], 1))


@pytest.mark.parametrize("factor", [0.55, 0.6, 0.9, 1.3])
@pytest.mark.parametrize("recomputes", [True, False])
def test_upsampling_by_what_torch_makes_of_the_factor(factor, recomputes):
    module = nn.Upsample(scale_factor=factor, mode="linear", recompute_scale_factor=recomputes)
    for n in range(2, 8):
        matrix = module(torch.eye(n).unsqueeze(1)).squeeze(1)
        assert torch.linalg.matrix_norm(matrix, 2) <= float(model_bound(module, (1, n))) * (
            1 + 1e-6
        )


class Doubled(nn.Sequential):
    def __call__(self, x):
        return 2 * super().__call__(x)


@pytest.mark.parametrize(
    ("module", "shape", "message"),
    [
        (nn.PReLU(4), (3, 2), "takes 4 channels"),
        (nn.BatchNorm2d(3).eval(), (3,), "takes 3 channels"),
        (Concatenation(nn.Identity()), (), "must have channels"),
        (Doubled(nn.Identity()), (3,), "has no bound here"),
    ],
    ids=["PReLU", "BatchNorm2d", "Concatenation", "call"],
)
def test_what_torch_refuses_or_a_class_overrides_has_no_bound(module, shape, message):
    with pytest.raises(ValueError, match=message):
        model_bound(module, shape)
