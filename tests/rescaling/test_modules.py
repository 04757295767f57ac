"""A bound and a scale over the life of a module: started, trained, copied, saved and taken off."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

import snorm_triton
from snorm_triton import (
    apply_spectral_norm,
    convert_spectral_norm,
    fold,
    refresh_spectral_norm,
    remove_spectral_norm,
    spectral_norm,
)

SCALE = "parametrizations.weight.0.scale"


def norm_of(layer):
    return layer.parametrizations.weight[0]


@pytest.fixture
def learned():
    return spectral_norm(nn.Linear(6, 4), scale="learned")


def step(layer):
    layer(torch.randn(2, 6)).square().sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()


@pytest.mark.parametrize("bound", [None, 0.1, 100.0])
@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(6, 4), lambda: nn.LayerNorm(6), lambda: nn.ConvTranspose1d(6, 4, 3)]
)
def test_a_learned_scale_leaves_the_layer_what_it_was(make, bound):
    layer = make()
    before = layer.weight.detach().clone()
    spectral_norm(layer, scale="learned", bound=bound).eval()
    # Registered, the weight was accessed once, which iterated.
    assert_close(layer.weight.detach(), before, rtol=1e-3, atol=1e-6)
    assert isinstance(norm_of(layer).scale, nn.Parameter)
    assert norm_of(layer).scale.shape == (1,)
    assert SCALE in layer.state_dict()


def test_it_starts_anew_with_what_is_written_before_the_first_forward(learned):
    nn.init.normal_(learned.weight, std=3)
    written = learned.weight_orig.detach().clone()
    x = torch.randn(2, 6)
    assert_close(learned(x), nn.functional.linear(x, written, learned.bias), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_starts_as_its_original_would_and_then_goes_its_own_way(learned, duplicate):
    twin = duplicate(learned)
    nn.init.normal_(twin.weight, std=3)
    x = torch.randn(2, 6)
    expected = nn.functional.linear(x, twin.weight_orig, twin.bias)
    assert_close(twin(x), expected, rtol=1e-4, atol=1e-4)
    step(twin)
    assert norm_of(twin).scale != norm_of(learned).scale
    third = duplicate(twin)
    assert torch.equal(third(x), copy.deepcopy(twin)(x))


def test_what_was_learned_outlives_refresh_and_a_state_dict(learned):
    step(learned)
    trained = norm_of(learned).scale.detach().clone()
    refresh_spectral_norm(learned)
    assert torch.equal(norm_of(learned).scale, trained)
    other = spectral_norm(nn.Linear(6, 4), scale="learned")
    other.load_state_dict(learned.state_dict())
    assert torch.equal(norm_of(other).scale, trained)
    refresh_spectral_norm(other)
    assert torch.equal(norm_of(other).scale, trained)


def test_on_the_meta_device_it_starts_once_there_are_values():
    with torch.device("meta"):
        layer = spectral_norm(nn.Linear(6, 4), scale="learned")
    layer.to_empty(device="cpu")
    weight = torch.randn(4, 6)
    with torch.no_grad():
        layer.parametrizations.weight.original.copy_(weight)
        layer.bias.zero_()
    x = torch.randn(2, 6)
    assert_close(layer(x), x @ weight.T, rtol=1e-4, atol=1e-4)


def test_a_lazy_layer():
    layer = spectral_norm(nn.LazyLinear(4), scale="learned", bound=0.5)
    x = torch.randn(2, 6)
    layer(x)
    expected = nn.functional.linear(x, layer.weight_orig, layer.bias)
    assert_close(layer(x), expected, rtol=1e-3, atol=1e-3)


def test_a_float_may_be_of_half_precision_while_the_state_is_not(learned):
    learned.bfloat16()
    assert norm_of(learned).scale.dtype == torch.bfloat16
    assert learned.weight.dtype == torch.bfloat16
    assert norm_of(learned)._u.dtype == torch.float32


def test_an_evaluation_that_is_kept_sees_a_change_of_the_scale(learned):
    learned.eval()
    with torch.no_grad():
        before = learned.weight.clone()
        norm_of(learned).scale.mul_(2)
        assert_close(learned.weight, 2 * before)


@pytest.mark.parametrize("options", [{"scale": "learned"}, {"bound": 0.5}, {"scale": 3.0}], ids=str)
def test_policy_update(options):
    layer = spectral_norm(nn.Linear(6, 4), power_iter="update", **options)
    x = torch.randn(2, 6)
    layer(x)
    first, second = layer.weight, layer.weight
    assert torch.equal(first, second)
    first.square().sum().backward()
    once = [p.grad.clone() for p in layer.parameters() if p.grad is not None]
    second.square().sum().backward()
    twice = [p.grad for p in layer.parameters() if p.grad is not None]
    for both, each in zip(twice, once, strict=True):
        assert_close(both, 2 * each)


def test_a_frozen_weight_whose_scale_is_trained(backend):
    model = apply_spectral_norm(
        nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)),
        scale="learned",
        backend=backend,
        foreach=True,
    )
    for layer in model:
        layer.parametrizations.weight.original.requires_grad_(False)
    for run in (lambda: model(torch.ones(2, 6)), lambda: model[1](torch.ones(2, 5))):
        run().sum().backward()
    assert all(norm_of(layer).scale.grad is not None for layer in model)
    assert all(layer.parametrizations.weight.original.grad is None for layer in model)


def test_a_scale_that_changes_before_the_backward_is_refused(learned):
    y = learned(torch.randn(2, 6)).sum()
    with torch.no_grad():
        norm_of(learned).scale.mul_(2)
    with pytest.raises(RuntimeError, match=r"learned scale .* modified by an inplace operation"):
        y.backward()


def test_it_is_removed_and_folded(learned):
    step(learned)
    expected = learned.eval().weight.detach().clone()
    folded = copy.deepcopy(learned)
    fold(folded)
    remove_spectral_norm(learned)
    for layer in (learned, folded):
        assert_close(layer.weight.detach(), expected)
        assert set(dict(layer.named_parameters())) == {"weight", "bias"}


@pytest.mark.parametrize("options", [{"scale": "learned"}, {"scale": 2.0}, {"bound": 0.5}], ids=str)
def test_torchs_has_none(options):
    layer = spectral_norm(nn.Linear(6, 4), **options)
    with pytest.raises(ValueError, match=f"torch's spectral norm has no {next(iter(options))}="):
        convert_spectral_norm(layer, to="torch")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("bound", 0),
        ("bound", -1.0),
        ("bound", float("nan")),
        ("bound", True),
        ("bound", "1"),
        ("scale", 0.0),
        ("scale", float("inf")),
        ("scale", float("nan")),
        ("scale", "learnt"),
        ("scale", None),
    ],
)
def test_what_is_no_bound_or_scale_is_refused(option, value):
    layer = nn.Linear(6, 4)
    state = copy.deepcopy(layer.state_dict())
    for normalize in (spectral_norm, apply_spectral_norm):
        with pytest.raises(ValueError, match=f"{option} must be (a )?positive"):
            normalize(layer, **{option: value})
    assert layer.state_dict().keys() == state.keys()


def test_the_function_refuses_the_same():
    weight, u, v = torch.randn(3, 2), torch.ones(3), torch.ones(2)
    for options in ({"bound": -1.0}, {"scale": 0.0}, {"scale": torch.ones(2)}):
        with pytest.raises(ValueError, match=next(iter(options))):
            snorm_triton.functional.spectral_normalize(weight, u, v, **options)


def fused(parameters):
    return torch.optim.Adam(parameters, lr=0.1, fused=True)


def test_a_fused_optimizer_trains_it_though_its_version_stays(learned):
    optimizer = fused(learned.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        learned(torch.randn(2, 6)).square().sum().backward()
        optimizer.step()
    trained = norm_of(learned).scale.detach().clone()
    refresh_spectral_norm(learned)
    assert torch.equal(norm_of(learned).scale, trained)


def test_an_average_through_data_is_no_start(learned):
    average = copy.deepcopy(learned)
    norm_of(average).scale.data.fill_(4)
    refresh_spectral_norm(average)
    assert norm_of(average).scale.item() == 4


def test_it_starts_anew_with_what_is_assigned(learned):
    learned.weight = 7 * torch.eye(4, 6)
    assert_close(learned.weight.detach(), 7 * torch.eye(4, 6), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scale", [float("inf"), 1e38])
def test_a_scale_out_of_range_gives_what_arithmetic_gives(learned, scale):
    norm_of(learned).scale.data.fill_(scale)
    learned(torch.randn(2, 6)).sum().backward()  # infinite, or not a number
    assert not norm_of(learned).scale.grad.isnan().all() or scale == float("inf")


def test_a_negative_estimate_is_bounded_too(backend):
    layer = spectral_norm(nn.Linear(6, 4), bound=0.5, backend=backend, n_power_iterations=20)
    with torch.no_grad():
        layer.weight  # noqa: B018
        layer.parametrizations.weight.original.neg_().mul_(10)
    norm = torch.linalg.matrix_norm(layer.eval().weight.detach(), 2)
    assert norm == pytest.approx(0.5, rel=1e-2)
    layer.weight.sum().backward()
    assert layer.parametrizations.weight.original.grad.isfinite().all()


def test_numbers_of_numpy_are_numbers():
    layer = spectral_norm(nn.Linear(6, 4), scale=np.float32(2), bound=np.int64(3))
    assert norm_of(layer).options.rescaling == (3.0, 2.0, None)


def test_what_was_pickled_without_a_scale_is_loaded():
    norm = norm_of(spectral_norm(nn.Linear(6, 4)))
    state = norm.__getstate__()
    assert "_started" not in state
    twin = type(norm).__new__(type(norm))
    twin.__setstate__(dict(state))
    assert torch.equal(twin._u, norm._u)


def test_a_changed_option_is_seen_by_an_evaluation_that_is_kept():
    layer = spectral_norm(nn.Linear(6, 4)).eval()
    with torch.no_grad():
        before = layer.weight.clone()
        norm_of(layer).eps = 1e3
        assert not torch.equal(layer.weight, before)
