"""Models normalized by torch become ours where they stand, and back."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils import spectral_norm as legacy_spectral_norm
from torch.nn.utils.parametrizations import _SpectralNorm

from snorm_triton import (
    SpectralNormParametrization,
    apply_spectral_norm,
    convert_spectral_norm,
    sigmas,
    spectral_norm,
)

THEIRS = [
    pytest.param(parametrizations.spectral_norm, id="parametrization"),
    pytest.param(legacy_spectral_norm, id="hook"),
]
theirs = pytest.mark.parametrize("norm", THEIRS)


def trained(norm, kind, **options):
    layer = norm(kind.make(), kind.parameter, **options)
    for _ in range(3):
        kind.run(layer, kind.inputs())
    return layer


def vectors(layer, name="weight"):
    if hasattr(layer, f"{name}_u"):
        return getattr(layer, f"{name}_u"), getattr(layer, f"{name}_v")
    p = layer.parametrizations[name][0]
    return p._u, p._v


def entries(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_unchanged(model, before):
    assert model.state_dict().keys() == before.keys()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


@theirs
def test_nothing_is_drawn_nothing_iterates_and_evaluation_is_the_same(
    norm, layer_kind, relative_error
):
    layer = trained(norm, layer_kind, n_power_iterations=2, eps=1e-6)
    name = layer_kind.parameter
    parameters = set(layer.parameters())
    u, v = (vector.clone() for vector in vectors(layer, name))
    inputs = layer_kind.inputs()
    with torch.no_grad():
        expected = layer_kind.run(layer.eval(), inputs)
    layer.train()
    state = torch.get_rng_state()
    assert convert_spectral_norm(layer, backend="torch") is layer
    assert torch.equal(torch.get_rng_state(), state)
    (p,) = layer.parametrizations[name]
    assert type(p) is SpectralNormParametrization
    assert (p.n_power_iterations, p.eps, p.backend) == (2, 1e-6, "torch")
    assert p.training
    assert torch.equal(p._u, u)
    assert torch.equal(p._v, v)
    assert p.sigma.isnan()
    assert set(layer.parameters()) == parameters
    with torch.no_grad():
        assert relative_error(layer_kind.run(layer.eval(), inputs), expected) < 1e-6
    assert layer.state_dict().keys() == spectral_norm(layer_kind.make(), name).state_dict().keys()


def test_training_goes_on_as_it_would_have(layer_kind, relative_error):
    reference = trained(parametrizations.spectral_norm, layer_kind)
    layer = parametrizations.spectral_norm(layer_kind.make(), layer_kind.parameter)
    layer.load_state_dict(reference.state_dict())
    convert_spectral_norm(layer)
    for _ in range(4):
        inputs = layer_kind.inputs()
        expected = layer_kind.run(reference, inputs)
        output = layer_kind.run(layer, inputs)
        assert relative_error(output, expected) < 1e-5
        for each in (output, expected):
            each.square().sum().backward()
        for parameter, other in zip(layer.parameters(), reference.parameters(), strict=True):
            if other.grad is not None:
                assert relative_error(parameter.grad, other.grad) < 1e-4


@theirs
def test_there_and_back(norm, layer_kind, relative_error):
    layer = trained(norm, layer_kind, n_power_iterations=3)
    name = layer_kind.parameter
    u, v = (vector.clone() for vector in vectors(layer, name))
    inputs = layer_kind.inputs()
    with torch.no_grad():
        expected = layer_kind.run(layer.eval(), inputs)
    state = torch.get_rng_state()
    convert_spectral_norm(convert_spectral_norm(layer), to="torch")
    assert torch.equal(torch.get_rng_state(), state)
    (p,) = layer.parametrizations[name]
    assert type(p) is _SpectralNorm
    assert type(layer.parametrizations[name]) is parametrize.ParametrizationList
    assert p.n_power_iterations == 3
    assert not p.training
    assert torch.equal(p._u, u)
    assert torch.equal(p._v, v)
    assert not [h for h in layer._load_state_dict_pre_hooks.values() if hasattr(h, "hook")]
    with torch.no_grad():
        assert relative_error(layer_kind.run(layer, inputs), expected) < 1e-6
    layer_kind.run(layer.train(), inputs).square().sum().backward()


def test_the_hook_becomes_torchs_parametrization():
    layer = legacy_spectral_norm(nn.ConvTranspose2d(3, 4, 2))
    weight = layer.weight_orig
    convert_spectral_norm(layer, to="torch")
    assert type(layer.parametrizations.weight[0]) is _SpectralNorm
    assert layer.parametrizations.weight.original is weight
    assert layer.parametrizations.weight[0].dim == 1


@theirs
def test_an_optimizer_goes_on(norm):
    def step(model, optimizer):
        torch.manual_seed(1)
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()

    model = nn.Sequential(norm(nn.Linear(4, 4)), nn.ReLU(), norm(nn.Linear(4, 1)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(3):
        step(model, optimizer)
    steps = {id(p): optimizer.state[p]["step"].item() for p in model.parameters()}
    convert_spectral_norm(model)
    step(model, optimizer)
    for parameter in model.parameters():
        assert optimizer.state[parameter]["step"].item() == steps[id(parameter)] + 1


@theirs
@pytest.mark.parametrize("training", [True, False])
def test_the_mode_stays(norm, training):
    model = nn.Sequential(norm(nn.Linear(3, 3)), norm(nn.Linear(3, 3)))
    model[0].train(training)
    model[1].eval()
    convert_spectral_norm(model)
    assert model[0].parametrizations.weight[0].training is training
    assert not model[1].parametrizations.weight[0].training


@theirs
def test_several_parameters_of_a_layer_and_of_a_nested_model(norm):
    model = nn.ModuleDict({"a": norm(norm(nn.Linear(3, 2)), "bias"), "b": nn.Sequential(nn.ReLU())})
    model["b"].append(norm(nn.Bilinear(2, 3, 4)))
    convert_spectral_norm(model)
    assert list(sigmas(model)) == ["a.weight", "a.bias", "b.1.weight"]
    expected = nn.functional.normalize(model["a"].parametrizations.bias.original, dim=0)
    assert torch.allclose(model.eval()["a"].bias, expected)


@theirs
def test_tied_parameters_and_layers_stay_tied(norm):
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    model = nn.Sequential(norm(first), norm(second), first)
    convert_spectral_norm(model)
    assert model[0] is model[2]
    original = model[0].parametrizations.weight.original
    assert model[1].parametrizations.weight.original is original
    assert len(list(model.parameters())) == 3


def test_a_parametrization_in_two_places_stays_in_both():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    shared = _SpectralNorm(first.weight)
    for layer in (first, second):
        parametrize.register_parametrization(layer, "weight", shared)
    convert_spectral_norm(nn.Sequential(first, second))
    assert first.parametrizations.weight[0] is second.parametrizations.weight[0]


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight

    def right_inverse(self, weight):
        return weight / 2


@pytest.mark.parametrize("first", [Doubled, None])
@pytest.mark.parametrize("last", [Doubled, None])
def test_others_on_the_parameter_stay_in_their_places(first, last, relative_error):
    layer = nn.Linear(4, 3)
    for norm in (first, parametrizations.spectral_norm, last):
        if norm is parametrizations.spectral_norm:
            norm(layer)
        elif norm is not None:
            parametrize.register_parametrization(layer, "weight", norm())
    kinds = [type(p) for p in layer.parametrizations.weight]
    expected = layer.eval().weight
    convert_spectral_norm(layer)
    ours = [SpectralNormParametrization if kind is _SpectralNorm else kind for kind in kinds]
    assert [type(p) for p in layer.parametrizations.weight] == ours
    assert relative_error(layer.weight, expected) < 1e-6
    convert_spectral_norm(layer, to="torch")
    assert [type(p) for p in layer.parametrizations.weight] == kinds
    assert relative_error(layer.weight, expected) < 1e-6


def test_a_stack(relative_error):
    layer = parametrizations.spectral_norm(parametrizations.spectral_norm(nn.Linear(4, 3)))
    expected = layer.eval().weight
    convert_spectral_norm(layer)
    assert list(sigmas(layer)) == ["weight.0", "weight.1"]
    assert relative_error(layer.weight, expected) < 1e-6


def test_on_top_of_weight_norm(relative_error):
    layer = parametrizations.spectral_norm(parametrizations.weight_norm(nn.Linear(4, 3)))
    before = entries(layer)
    convert_spectral_norm(layer)
    assert_unchanged(layer, before)
    assert layer.training
    assert all(module.training for module in layer.modules())
    expected = convert_spectral_norm(copy.deepcopy(layer), to="torch").eval().weight
    assert relative_error(layer.eval().weight, expected) < 1e-6


@theirs
def test_a_deepcopy_and_its_original_are_converted_apart(norm):
    original = norm(nn.Linear(4, 3))
    norm(original, "bias")
    inputs = torch.randn(2, 4)
    with torch.no_grad():
        original(inputs)
        expected = original.eval()(inputs)
    twin = copy.deepcopy(original)
    convert_spectral_norm(twin)
    assert torch.equal(original(inputs), expected)
    assert len(twin._load_state_dict_pre_hooks) == 1
    assert type(twin) is not type(original)
    again = pickle.loads(pickle.dumps(copy.deepcopy(twin)))
    convert_spectral_norm(original)
    with parametrize.cached(), torch.no_grad():
        for parameter in twin.parameters():
            parameter.normal_()
        assert not torch.equal(twin.weight, original.weight)
    assert torch.equal(again.weight, original.weight)
    parametrize.remove_parametrizations(twin, "weight")
    parametrize.remove_parametrizations(twin, "bias")
    assert type(twin) is nn.Linear
    assert original.bias.shape == (3,)


@theirs
def test_a_model_that_was_just_trained_can_be_copied_once_converted(norm):
    model = nn.Sequential(norm(nn.Linear(4, 3)))
    model(torch.randn(2, 4)).sum().backward()
    twin = copy.deepcopy(convert_spectral_norm(model))
    assert torch.equal(twin.eval()[0].weight, model.eval()[0].weight)


def test_what_torch_shares_a_class_with_is_left_whole():
    original = parametrizations.spectral_norm(nn.Linear(4, 3))
    legacy_spectral_norm(original, "bias")
    with torch.no_grad():
        original(torch.randn(2, 4))
    twin = copy.deepcopy(original)
    convert_spectral_norm(twin)
    inputs = torch.randn(2, 4)
    assert (original.eval()(inputs) - twin.eval()(inputs)).norm() < 1e-4
    assert hasattr(original, "bias_orig")


def test_the_hook_leaves_nothing_behind():
    plain = nn.Linear(3, 2)
    layer = convert_spectral_norm(legacy_spectral_norm(nn.Linear(3, 2)))
    reference = spectral_norm(plain)
    assert layer.__dict__.keys() == reference.__dict__.keys()
    for hooks in ("_forward_pre_hooks", "_state_dict_hooks", "_load_state_dict_pre_hooks"):
        assert len(getattr(layer, hooks)) == len(getattr(reference, hooks))
    assert layer.state_dict()._metadata == reference.state_dict()._metadata
    assert not layer.parametrizations.weight.unsafe
    layer.load_state_dict(legacy_spectral_norm(nn.Linear(3, 2)).state_dict(), strict=True)


def test_half_precision():
    layer = parametrizations.spectral_norm(nn.Linear(4, 3)).half()
    convert_spectral_norm(layer)
    p = layer.parametrizations.weight[0]
    assert p._u.dtype == torch.float32
    assert layer.weight.dtype == torch.float16
    convert_spectral_norm(layer, to="torch")
    assert layer.parametrizations.weight[0]._u.dtype == torch.float16
    assert layer(torch.ones(1, 4, dtype=torch.float16)).dtype == torch.float16


def test_buffers_stay_where_others_hold_them():
    layer = parametrizations.spectral_norm(nn.Linear(4, 3))
    u = layer.parametrizations.weight[0]._u
    convert_spectral_norm(layer)
    assert layer.parametrizations.weight[0]._u is u


def test_what_stands_as_it_should_is_left_alone():
    ours = spectral_norm(nn.Linear(3, 3))
    lazy = spectral_norm(nn.LazyLinear(3))
    model = nn.Sequential(ours, parametrizations.spectral_norm(nn.Linear(3, 3)), lazy)
    p = ours.parametrizations.weight[0]
    convert_spectral_norm(convert_spectral_norm(model))
    assert ours.parametrizations.weight[0] is p
    model(torch.ones(1, 3))
    assert list(sigmas(model)) == ["0.weight", "1.weight", "2.weight"]


def test_foreach_ends_with_ours():
    model = apply_spectral_norm(nn.Sequential(nn.Linear(3, 3)), foreach=True)
    model(torch.ones(1, 3))
    convert_spectral_norm(model, to="torch")
    assert not model._forward_pre_hooks
    model(torch.ones(1, 3))
    apply_spectral_norm(convert_spectral_norm(model), foreach=True)
    model(torch.ones(1, 3)).sum().backward()
    assert not sigmas(model)["0.weight"].isnan()


def derived():
    class Other(_SpectralNorm):
        pass

    layer = nn.Linear(3, 3)
    return parametrize.register_parametrization(layer, "weight", Other(layer.weight))


def pruned():
    return prune.l1_unstructured(legacy_spectral_norm(nn.Linear(3, 3)), "weight_orig", amount=2)


def sharded():
    layer = parametrizations.spectral_norm(nn.Linear(3, 3))
    layer.__class__ = type("FSDPLinear", (nn.Identity, type(layer)), {})
    return layer


def misshapen():
    layer = parametrizations.spectral_norm(nn.Linear(4, 3))
    layer.parametrizations.weight[0]._v = torch.ones(3)
    return layer


@pytest.mark.parametrize(
    ("last", "options", "message"),
    [
        (derived, {}, r"1\.weight: Other is derived from a spectral norm"),
        (pruned, {}, r"1\.weight: .*no parameter weight_orig"),
        (sharded, {}, r"1\.weight: FSDPLinear is sharded"),
        (misshapen, {}, r"1\.weight: vectors must be u and v of shapes \(3,\) and \(4,\)"),
        (nn.ReLU, {"backend": "nowhere"}, "backend must be one of"),
        (nn.ReLU, {"backend": "triton"}, r"0\.weight: backend='triton' cannot run"),
        (nn.ReLU, {"to": "legacy"}, "to must be 'ours' or 'torch', got 'legacy'"),
    ],
)
def test_what_cannot_be_converted_is_named_and_nothing_is_changed(last, options, message):
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(3, 3)), last())
    before = entries(model)
    with pytest.raises(ValueError, match=message):
        convert_spectral_norm(model, **options)
    assert type(model[0].parametrizations.weight[0]) is _SpectralNorm
    assert_unchanged(model, before)


def test_what_torch_cannot_take_is_named_and_nothing_is_changed():
    model = nn.Sequential(spectral_norm(nn.Linear(3, 3)), spectral_norm(nn.LazyLinear(3)))
    with pytest.raises(ValueError, match=r"1\.weight waits for its lazy module"):
        convert_spectral_norm(model, to="torch")
    assert len(sigmas(model)) == 1
    model[1] = spectral_norm(nn.Linear(3, 3), power_iter_on_eval=True)
    with pytest.raises(ValueError, match=r"1\.weight: .* no power_iter_on_eval=True"):
        convert_spectral_norm(model, to="torch")
    assert len(sigmas(model)) == 2


def test_bad_arguments():
    with pytest.raises(ValueError, match="Linear has no spectral norm"):
        convert_spectral_norm(nn.Linear(3, 3))
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got dict"):
        convert_spectral_norm({})
    model = parametrizations.spectral_norm(nn.Linear(3, 3))
    with pytest.raises(TypeError, match=r"unknown option 'momentum'; .* are .*backend"):
        convert_spectral_norm(model, momentum=1)
    with pytest.raises(TypeError, match="eps stays what it is"):
        convert_spectral_norm(model, eps=1e-6)
    with pytest.raises(TypeError, match=r"unknown option 'backend'; .* are none"):
        convert_spectral_norm(model, to="torch", backend="torch")


def test_vectors_are_taken_as_they_are():
    weight = torch.randn(4, 3)
    u, v = torch.ones(4), torch.ones(3)
    p = SpectralNormParametrization(weight, vectors=(u, v))
    assert torch.equal(p._u, u)
    assert torch.equal(p._v, v)
    with pytest.raises(ValueError, match=r"vectors must be .*\(4,\) and \(3,\) .* got \[\(3,\)"):
        SpectralNormParametrization(weight, vectors=(v, u))
