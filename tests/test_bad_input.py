"""Each mistake gets one error that names the argument, and nothing is changed."""

import pytest
import torch
import torch.nn.utils as legacy
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from snorm_triton import (
    apply_spectral_norm,
    backend_report,
    remove_spectral_norm,
    sigmas,
    spectral_norm,
)
from snorm_triton.functional import spectral_normalize
from snorm_triton.ops import dispatch


def integer_layer():
    layer = nn.Linear(3, 2)
    layer.weight = nn.Parameter(torch.ones(2, 3, dtype=torch.int8), requires_grad=False)
    return layer


def sparse_layer():
    layer = nn.Linear(3, 2)
    layer.weight = nn.Parameter(torch.eye(2, 3).to_sparse())
    return layer


def scalar_layer():
    layer = nn.Module()
    layer.weight = nn.Parameter(torch.tensor(2.0))
    return layer


def float8_layer():
    layer = nn.Linear(3, 2)
    weight = torch.zeros(2, 3).to(torch.float8_e4m3fn)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def quantized_layer():
    layer = nn.Linear(3, 2)
    weight = torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.qint8)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


@pytest.mark.parametrize(
    ("make", "options", "error", "match"),
    [
        (lambda: nn.Linear(3, 2), {"name": "weights"}, ValueError, "name='weights'.*weight, bias"),
        (lambda: nn.Linear(3, 2, bias=False), {"name": "bias"}, ValueError, "name='bias'"),
        (lambda: nn.ReLU(), {}, ValueError, "name='weight'.*none"),
        (integer_layer, {}, ValueError, "int8; it must be one of float32"),
        pytest.param(
            quantized_layer,
            {},
            ValueError,
            "qint8; it must be one of float32",
            marks=pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),
        ),
        (scalar_layer, {}, ValueError, "scalar"),
        (float8_layer, {}, ValueError, "float8_e4m3fn; it must be one of float32"),
        (lambda: nn.Linear(3, 2), {"dim": 1.0}, ValueError, "dim must be an integer, got 1.0"),
        (lambda: nn.Linear(3, 2), {"dim": True}, ValueError, "dim must be an integer"),
        (lambda: nn.Linear(3, 2), {"eps": "x"}, ValueError, "eps must be positive.*'x'"),
        (lambda: nn.Linear(3, 2), {"eps": float("inf")}, ValueError, "eps must be positive"),
        (sparse_layer, {}, ValueError, "sparse.*dense"),
        (lambda: nn.Linear(3, 2), {"n_power_iterations": 0}, ValueError, "n_power_iterations.*0"),
        (lambda: nn.Linear(3, 2), {"n_power_iterations": -1}, ValueError, "n_power_iterations.*-1"),
        (lambda: nn.Linear(3, 2), {"n_power_iterations": 1.5}, ValueError, "n_power_iterations"),
        (lambda: nn.Linear(3, 2), {"dim": 2}, IndexError, r"dim must be in \[-2, 1\].*got 2"),
        (lambda: nn.Linear(3, 2), {"dim": -3}, IndexError, "dim .*got -3"),
        (lambda: nn.Linear(3, 2), {"eps": 0.0}, ValueError, r"eps must be positive.*got 0.0"),
        (lambda: nn.Linear(3, 2), {"eps": -1e-3}, ValueError, "eps must be positive"),
        (lambda: nn.Linear(3, 2), {"eps": float("nan")}, ValueError, "eps must be positive"),
        (lambda: nn.Linear(3, 2), {"backend": "cuda"}, ValueError, "backend must be one of"),
        (lambda: nn.Linear(3, 2), {"power_iter": "step"}, ValueError, "power_iter.*step"),
        (lambda: nn.Linear(3, 2), {"max_norm": 1.0}, TypeError, "max_norm"),
        (lambda: nn.LazyLinear(2), {"init_on_first_forward": False}, ValueError, "init_on_first"),
        (lambda: nn.LazyLinear(2), {"n_power_iterations": 0}, ValueError, "n_power_iterations"),
        (lambda: nn.LazyLinear(2), {"eps": 0}, ValueError, "eps"),
        (lambda: nn.LazyLinear(2), {"backend": "cuda"}, ValueError, "backend"),
    ],
)
def test_a_refusal_changes_nothing(make, options, error, match):
    module = make()
    cls, before = type(module), dict(module.__dict__)
    parameters, hooks = dict(module._parameters), dict(module._forward_pre_hooks)
    draws = torch.get_rng_state()
    with pytest.raises(error, match=match):
        spectral_norm(module, **options)
    assert type(module) is cls
    assert module.__dict__.keys() == before.keys()
    assert module._parameters == parameters
    assert module._forward_pre_hooks == hooks
    assert torch.equal(torch.get_rng_state(), draws)


def test_a_deferred_registration_that_fails_says_so_at_every_forward():
    layer = spectral_norm(nn.LazyLinear(2), dim=2)
    for _ in range(2):
        with pytest.raises(IndexError, match=r"dim must be in \[-2, 1\].*got 2"):
            layer(torch.randn(4, 3))


def test_the_triton_backend_says_why_it_cannot_run_here(monkeypatch):
    layer = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"backend='triton' cannot run: .*CPU.*TRITON_INTERPRET"):
        spectral_norm(layer, backend="triton")
    with pytest.raises(ValueError, match=r"cannot run: .*1-D"):
        spectral_norm(layer, "bias", backend="triton")
    monkeypatch.setattr(dispatch, "DEFAULT_BACKEND", "triton")
    with pytest.raises(ValueError, match="SNORM_TRITON_BACKEND='triton' cannot run"):
        spectral_norm(layer)
    monkeypatch.setattr(dispatch, "DEFAULT_BACKEND", "metal")
    with pytest.raises(ValueError, match="SNORM_TRITON_BACKEND must be one of"):
        spectral_norm(layer)
    assert not parametrize.is_parametrized(layer)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: spectral_norm(torch.randn(2, 2)), TypeError, "module must be .*got Tensor"),
        (lambda: spectral_norm(nn.Linear), TypeError, "module must be .*the class Linear"),
        (lambda: remove_spectral_norm("x"), TypeError, "module must be .*got str"),
        (lambda: apply_spectral_norm([nn.Linear(2, 2)]), TypeError, "model must be .*got list"),
        (lambda: sigmas("x"), TypeError, "model must be .*got str"),
        (lambda: backend_report(None), TypeError, "model must be .*got NoneType"),
        (lambda: spectral_norm(nn.Linear(2, 2), n_iter=3), TypeError, "n_iter"),
    ],
)
def test_a_wrong_type_is_named(call, error, match):
    with pytest.raises(error, match=match):
        call()


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"include_types": "Linear"}, TypeError, "include_types must hold module types"),
        ({"exclude_types": [nn.Linear(2, 2)]}, TypeError, "exclude_types must hold module types"),
        ({"exclude_names": [nn.Linear]}, TypeError, "exclude_names must hold strings"),
        ({"exclude_names": ["0", "head"]}, ValueError, "exclude_names: 'head' matches no module"),
        ({"name": "bias"}, TypeError, "takes names"),
        ({"n_iter": 2}, TypeError, "unknown option 'n_iter'; the options are n_power_iterations"),
    ],
)
def test_a_wrong_selection_is_named(options, error, match):
    model = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(error, match=match):
        apply_spectral_norm(model, **options)
    assert sigmas(model) == {}


@pytest.mark.parametrize("norm", [legacy.spectral_norm, legacy.weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_a_legacy_hook_in_the_way_is_named(norm):
    with pytest.raises(ValueError, match=r"hook computes 'weight': remove that first"):
        spectral_norm(norm(nn.Linear(3, 2)))


def test_apply_changes_no_layer_if_one_is_refused():
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(integer_layer()))
    with pytest.raises(ValueError, match="int8"):
        apply_spectral_norm(model)
    assert sigmas(model) == {}
    with pytest.raises(TypeError, match="n_iterations"):
        apply_spectral_norm(model, n_iterations=2)
    with pytest.raises(ValueError, match="foreach"):
        apply_spectral_norm(model, foreach="yes")


@pytest.mark.parametrize("recursive", [True, False])
def test_removal_where_nothing_is_registered(recursive):
    layer = parametrizations.spectral_norm(nn.Linear(3, 2))
    with pytest.raises(ValueError, match="no spectral norm of snorm_triton"):
        remove_spectral_norm(layer, recursive=recursive)
    assert parametrize.is_parametrized(layer)


def test_a_second_bad_registration_leaves_the_first():
    layer = spectral_norm(nn.Linear(3, 2))
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    with pytest.raises(ValueError, match="eps"):
        spectral_norm(layer, eps=0)
    with pytest.raises(IndexError, match="dim"):
        spectral_norm(layer, dim=5)
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"weight": torch.randn(3)}, "weight must have at least 2 dimensions"),
        ({"u": torch.randn(4)}, r"u must be .*shape \(3,\)"),
        ({"v": torch.randn(3)}, r"v must be .*shape \(4,\)"),
        ({"u": torch.randn(3).double()}, "u must be a torch.float32"),
        ({"dim": 2}, r"dim must be in \[-2, 1\]"),
        ({"n_power_iterations": -1}, "n_power_iterations must not be negative"),
        ({"backend": "cpu"}, "backend must be one of"),
    ],
)
def test_the_functional_form_names_the_argument(changed, match):
    arguments = {"weight": torch.randn(3, 4), "u": torch.randn(3), "v": torch.randn(4), **changed}
    with pytest.raises(ValueError, match=match):
        spectral_normalize(**arguments)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_an_empty_weight_behaves_as_in_torch(shape):
    outputs = []
    for norm in (spectral_norm, parametrizations.spectral_norm):
        layer = nn.Module()
        layer.weight = nn.Parameter(torch.empty(shape))
        norm(layer)
        layer.weight.sum().backward()
        state = layer.state_dict()
        outputs.append((layer.weight.shape, {key: value.shape for key, value in state.items()}))
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("flag", ["leave_parametrized", "recursive"])
def test_flags_of_removal_are_no_strings(flag):
    layer = spectral_norm(nn.Linear(3, 2))
    with pytest.raises(TypeError, match=f"{flag} must be True or False, got 'False'"):
        remove_spectral_norm(layer, **{flag: "False"})
    assert parametrize.is_parametrized(layer)


def test_a_name_that_is_no_string():
    with pytest.raises(TypeError, match="name must be a string, got"):
        spectral_norm(nn.Linear(3, 2), ["weight"])


def test_what_a_module_has_instead_of_the_name():
    with pytest.raises(ValueError, match=r"it has weight$"):
        spectral_norm(nn.Linear(3, 2, bias=False), "bias")
    with pytest.raises(ValueError, match="it has none; for those of its submodules"):
        spectral_norm(nn.Sequential(nn.Linear(3, 2)))
