"""apply, remove, sigmas, backend_report and the wrapper."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import spectral_norm as legacy_spectral_norm

from snorm_triton import (
    SpectralNormParametrization,
    SpectralNormWrapper,
    apply_spectral_norm,
    backend_report,
    remove_spectral_norm,
    sigmas,
    spectral_norm,
)
from snorm_triton.reference import largest_singular_value


def small_model():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.Sequential(nn.ConvTranspose2d(4, 4, 2), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(100, 2),
    )


def test_spectral_norm_returns_the_module_it_was_given():
    layer = nn.Linear(3, 3)
    assert spectral_norm(layer) is layer


def test_apply_takes_every_layer_that_has_a_matrix():
    assert list(sigmas(apply_spectral_norm(small_model()))) == [
        "0.weight",
        "2.0.weight",
        "4.weight",
    ]


def test_apply_takes_a_single_layer_as_a_model():
    assert list(sigmas(apply_spectral_norm(nn.Embedding(4, 3)))) == ["weight"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"include_types": nn.Linear}, ["4"]),
        ({"include_types": [nn.Linear, nn.Conv2d]}, ["0", "4"]),
        ({"exclude_types": (nn.ConvTranspose2d,)}, ["0", "4"]),
        ({"exclude_names": "2.0"}, ["0", "4"]),
        ({"exclude_names": ["2.*", "4"]}, ["0"]),
        ({"exclude_names": ["[04]"]}, ["2.0"]),
        ({"predicate": lambda name, module: module.weight.numel() > 100}, ["0", "4"]),
        ({"predicate": lambda name, module: name != "0"}, ["2.0", "4"]),
    ],
)
def test_apply_leaves_out_what_it_is_told_to(options, expected):
    model = apply_spectral_norm(small_model(), **options)
    assert list(sigmas(model)) == [f"{name}.weight" for name in expected]


@pytest.mark.parametrize(
    "norm", [spectral_norm, parametrizations.spectral_norm, legacy_spectral_norm]
)
def test_apply_skips_what_is_normalized_already(norm):
    model = small_model()
    norm(model[4])
    before = set(sigmas(model))
    apply_spectral_norm(model)
    apply_spectral_norm(model)
    assert set(sigmas(model)) - before == {"0.weight", "2.0.weight"}
    assert len(getattr(model[4], "parametrizations", {"weight": [0]})["weight"]) == 1


def test_apply_looks_at_the_weight_alone():
    layer = legacy_spectral_norm(nn.Linear(3, 3), "bias")
    assert list(sigmas(apply_spectral_norm(layer))) == ["weight"]


def test_the_backend_report_says_what_cannot_run_any_more():
    layer = spectral_norm(nn.Linear(3, 4))
    parametrization = layer.parametrizations.weight[0]
    parametrization.backend = "triton"
    (report,) = backend_report(layer)
    assert report.backend == "none"
    assert "cannot run" in report.reason


def test_apply_hands_options_on():
    model = apply_spectral_norm(small_model(), n_power_iterations=3, eps=1e-6)
    for layer in (model[0], model[4]):
        assert layer.parametrizations.weight[0].n_power_iterations == 3
        assert layer.parametrizations.weight[0].eps == 1e-6


def test_transposed_convolutions_take_their_outputs_from_dim_1():
    layer = spectral_norm(nn.ConvTranspose2d(3, 5, 2))
    assert layer.parametrizations.weight[0]._u.shape == (5,)
    assert layer.parametrizations.weight[0]._v.shape == (12,)


def test_sigmas_are_the_largest_singular_values():
    model = apply_spectral_norm(small_model(), n_power_iterations=50)
    for name, sigma in sigmas(model).items():
        layer = model.get_submodule(name.removesuffix(".weight"))
        parametrization = layer.parametrizations.weight[0]
        exact = largest_singular_value(layer.parametrizations.weight.original, parametrization.dim)
        assert sigma.item() == pytest.approx(exact.item(), rel=1e-3)
        assert sigma.shape == ()
        assert not sigma.requires_grad


def test_sigmas_report_each_of_a_stack():
    layer = spectral_norm(spectral_norm(nn.Linear(3, 3)))
    values = sigmas(layer)
    assert list(values) == ["weight.0", "weight.1"]
    assert values["weight.1"].item() == pytest.approx(1, abs=0.1)


def test_sigmas_are_not_changed_by_what_comes_after():
    layer = spectral_norm(nn.Linear(3, 3))
    sigma = sigmas(layer)["weight"]
    before = sigma.clone()
    with torch.no_grad():
        layer.parametrizations.weight.original.mul_(5)
    _ = layer.weight
    assert torch.equal(sigma, before)


def test_the_backend_report_says_why():
    model = apply_spectral_norm(small_model())
    for name, backend, reason in backend_report(model):
        assert name in sigmas(model)
        assert backend == "torch"
        assert "CPU" in reason


def test_the_environment_sets_the_default_backend():
    script = "import torch, snorm_triton.ops.dispatch as d; print(*d.select(torch.ones(2, 2)))"
    environment = os.environ | {"SNORM_TRITON_BACKEND": "torch"}
    command = [sys.executable, "-W", "ignore", "-c", script]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout == "torch asked for by SNORM_TRITON_BACKEND\n"


def test_the_backend_report_names_a_copy():
    layer = nn.Linear(3, 4)
    layer.weight = nn.Parameter(torch.randn(8, 3)[::2])
    assert "copied at each access" in backend_report(spectral_norm(layer))[0].reason


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("leave_parametrized", [True, False])
def test_removal_never_iterates(layer_kind, training, leave_parametrized):
    layer = spectral_norm(layer_kind.make(), layer_kind.parameter).train(training)
    parametrization_list = layer.parametrizations[layer_kind.parameter]
    parameter = parametrization_list.original
    raw = parameter.detach().clone()
    used = getattr(layer.eval(), layer_kind.parameter).detach().clone()
    layer.train(training)
    remove_spectral_norm(layer, layer_kind.parameter, leave_parametrized=leave_parametrized)
    left = getattr(layer, layer_kind.parameter)
    assert left is parameter
    assert torch.equal(left, used if leave_parametrized else raw)
    assert left.requires_grad
    assert not parametrize.is_parametrized(layer)
    assert type(layer) is type(layer_kind.make())


def test_removal_takes_a_whole_stack_off():
    layer = spectral_norm(spectral_norm(nn.Linear(3, 3)))
    remove_spectral_norm(layer)
    assert sigmas(layer) == {}


def test_recursive_removal_folds_a_model():
    model = apply_spectral_norm(small_model()).eval()
    spectral_norm(model[4], "bias")
    model.append(spectral_norm(nn.LazyLinear(3)))
    images = torch.randn(2, 3, 6, 6)
    expected = model[:5](images)
    keys = set(remove_spectral_norm(model, recursive=True).state_dict())
    assert keys == set(small_model().append(nn.LazyLinear(3)).state_dict())
    assert (model[:5](images) - expected).norm() < 1e-5 * expected.norm()


def test_power_iter_on_eval_iterates_there_too():
    layer = spectral_norm(nn.Linear(30, 30), power_iter_on_eval=True).eval()
    before = layer.parametrizations.weight[0]._u.clone()
    _ = layer.weight
    assert not torch.equal(layer.parametrizations.weight[0]._u, before)


def test_the_wrapper_is_a_view_of_the_module():
    layer = nn.Linear(4, 3)
    wrapper = SpectralNormWrapper(layer, "weight", n_power_iterations=2)
    with pytest.raises(LookupError, match="no spectral norm"):
        _ = wrapper.sigma
    assert wrapper.attach() is layer
    (parametrization,) = SpectralNormWrapper(layer).parametrizations
    assert isinstance(parametrization, SpectralNormParametrization)
    assert wrapper.parametrizations == [parametrization]
    assert torch.equal(wrapper.sigma, sigmas(layer)["weight"])
    assert wrapper.remove() is layer
    assert wrapper.parametrizations == []


def test_the_parametrization_can_be_registered_by_hand():
    layer = nn.Linear(4, 3)
    parametrize.register_parametrization(
        layer, "weight", SpectralNormParametrization(layer.weight, n_power_iterations=30)
    )
    assert torch.linalg.matrix_norm(layer.weight, 2).item() == pytest.approx(1, abs=1e-4)
    assert list(sigmas(layer)) == ["weight"]


def test_assigning_sets_the_weight_before_normalization():
    layer = spectral_norm(nn.Linear(4, 3))
    value = torch.randn(3, 4)
    layer.weight = value
    assert torch.equal(layer.parametrizations.weight.original, value)


def test_tied_weights_stay_tied():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    model = apply_spectral_norm(nn.Sequential(first, second))
    assert first.parametrizations.weight.original is second.parametrizations.weight.original
    model(torch.randn(2, 4)).sum().backward()
    assert len(list(model.parameters())) == 3
