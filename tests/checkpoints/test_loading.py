"""What a normalized module loads: state dicts in every layout."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils import spectral_norm as legacy_spectral_norm

from saved_states import assert_same_outputs, before_torch_1, trained
from snorm_triton import remove_spectral_norm, sigmas, spectral_norm
from snorm_triton.checkpoints.missing_v import right_vector


def through_a_file(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("metadata", [True, False])
@pytest.mark.parametrize("assign", [False, True])
def test_a_legacy_checkpoint_gives_the_same_outputs(layer_kind, relative_error, metadata, assign):
    saved = trained(legacy_spectral_norm, layer_kind)
    state = saved.state_dict() if metadata else dict(saved.state_dict())
    given = dict(state)
    layer = spectral_norm(layer_kind.make(), layer_kind.parameter)
    layer.load_state_dict(state, strict=True, assign=assign)
    assert dict(state) == given
    p = layer.parametrizations[layer_kind.parameter][0]
    assert torch.equal(p._u, state[f"{layer_kind.parameter}_u"])
    assert torch.equal(p._v, state[f"{layer_kind.parameter}_v"])
    assert_same_outputs(layer_kind, layer, saved, relative_error)


def test_an_absent_v_is_the_next_of_the_power_iteration(layer_kind, relative_error):
    saved = trained(legacy_spectral_norm, layer_kind)
    name = layer_kind.parameter
    state = saved.state_dict()
    del state[f"{name}_v"]
    layer = spectral_norm(layer_kind.make(), name)
    layer.load_state_dict(state, strict=True)
    (hook,) = saved._forward_pre_hooks.values()
    matrix = hook.reshape_weight_to_matrix(state[f"{name}_orig"])
    v = nn.functional.normalize(matrix.T @ state[f"{name}_u"], dim=0)
    assert relative_error(layer.parametrizations[name][0]._v, v) < 1e-6


def test_a_checkpoint_from_before_torch_1_gives_what_torch_migrates_it_to(
    layer_kind, relative_error
):
    saved = trained(legacy_spectral_norm, layer_kind)
    state = before_torch_1(saved, layer_kind.parameter)
    migrated = legacy_spectral_norm(layer_kind.make(), layer_kind.parameter)
    migrated.load_state_dict(state, strict=True)
    layer = spectral_norm(layer_kind.make(), layer_kind.parameter)
    layer.load_state_dict(state, strict=True)
    assert_same_outputs(layer_kind, layer, migrated, relative_error)
    p = layer.parametrizations[layer_kind.parameter][0]
    assert p._v.norm().item() == pytest.approx(1, abs=1e-6)
    # nearer to the v that torch 0.4 had than the direction that it iterates to
    weight, u = state[f"{layer_kind.parameter}_orig"], state[f"{layer_kind.parameter}_u"]
    v = saved.state_dict()[f"{layer_kind.parameter}_v"]
    assert (p._v - v).norm() <= (right_vector(weight, u, p.dim) - v).norm() + 1e-3


def test_a_weight_that_moved_since_it_was_last_normalized_is_normalized_anew():
    layer = legacy_spectral_norm(nn.Linear(5, 4))
    for _ in range(30):
        layer(torch.randn(2, 5))
    state = before_torch_1(layer)
    state["weight_orig"] = state["weight_orig"] * 0.5
    ours = spectral_norm(nn.Linear(5, 4)).eval()
    ours.load_state_dict(state)
    assert torch.linalg.matrix_norm(ours.weight, 2).item() == pytest.approx(1, abs=1e-3)


def test_a_zero_weight_without_v_can_grow_again():
    weight = torch.zeros(4, 5)
    v = right_vector(weight, torch.ones(4), 0)
    assert v.norm().item() == pytest.approx(1)


def test_a_one_dimensional_parameter():
    saved = legacy_spectral_norm(nn.Linear(5, 4), "bias")
    saved(torch.randn(2, 5))
    layer = spectral_norm(nn.Linear(5, 4), "bias").eval()
    layer.load_state_dict(saved.state_dict(), strict=True)
    assert torch.allclose(layer.bias, saved.eval().bias)


def test_a_dim_of_ones_own():
    saved = legacy_spectral_norm(nn.Conv2d(3, 4, 2), dim=2)
    saved(torch.randn(1, 3, 4, 4))
    layer = spectral_norm(nn.Conv2d(3, 4, 2), dim=2).eval()
    layer.load_state_dict(saved.state_dict(), strict=True)
    inputs = torch.randn(1, 3, 4, 4)
    assert torch.allclose(layer(inputs), saved.eval()(inputs), atol=1e-6)


def test_several_parameters_deep_in_a_model():
    def model(norm):
        layer = norm(norm(nn.Linear(3, 3)), "bias")
        return nn.ModuleDict({"a": nn.Sequential(layer, nn.BatchNorm1d(3)), "b": norm(layer_of())})

    def layer_of():
        return nn.Bilinear(2, 3, 4)

    saved = model(legacy_spectral_norm)
    ours = model(spectral_norm)
    ours.load_state_dict(saved.state_dict(), strict=True)
    state = ours.state_dict()
    assert torch.equal(
        state["a.0.parametrizations.bias.original"], saved.state_dict()["a.0.bias_orig"]
    )
    assert torch.equal(state["b.parametrizations.weight.0._v"], saved.state_dict()["b.weight_v"])


def test_beside_another_parametrization():
    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight

    layer = nn.Linear(4, 3)
    parametrize.register_parametrization(layer, "weight", Doubled())
    spectral_norm(layer)
    saved = legacy_spectral_norm(nn.Linear(4, 3))
    layer.load_state_dict(saved.state_dict(), strict=True)
    assert torch.equal(layer.parametrizations.weight[1]._u, saved.weight_u)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), through_a_file]
)
def test_copies_load_what_their_original_loads(duplicate):
    saved = legacy_spectral_norm(nn.Linear(4, 3))
    layer = spectral_norm(nn.Linear(4, 3))
    twin = duplicate(duplicate(layer))
    before = layer.state_dict()["parametrizations.weight.0._u"].clone()
    twin.load_state_dict(saved.state_dict(), strict=True)
    assert torch.equal(twin.parametrizations.weight[0]._u, saved.weight_u)
    assert torch.equal(layer.parametrizations.weight[0]._u, before)
    layer.load_state_dict(saved.state_dict(), strict=True)


def test_removal_takes_the_load_hook_off_with_the_last_parameter():
    layer = spectral_norm(spectral_norm(nn.Linear(4, 3)), "bias")
    assert len(layer._load_state_dict_pre_hooks) == 1
    remove_spectral_norm(layer)
    layer.load_state_dict(
        {
            "weight": torch.ones(3, 4),
            "bias_orig": torch.ones(3),
            "bias_u": torch.ones(3),
            "bias_v": torch.ones(1),
        }
    )
    remove_spectral_norm(layer, "bias")
    assert not layer._load_state_dict_pre_hooks
    layer.load_state_dict(nn.Linear(4, 3).state_dict())


def test_a_lazy_module_takes_a_legacy_checkpoint_before_its_first_forward(
    lazy_kind, relative_error
):
    full = lazy_kind.make()
    lazy_kind.run(full, lazy_kind.inputs())
    saved = trained(legacy_spectral_norm, lazy_kind_with(lazy_kind, full))
    layer = spectral_norm(spectral_norm(lazy_kind.make()), "bias")
    state = saved.state_dict()
    del state._metadata
    state["bias_orig"] = state.pop("bias")
    state["bias_u"], state["bias_v"] = state["bias_orig"], torch.ones(1)
    layer.load_state_dict(state, strict=True)
    expected = nn.functional.normalize(state["bias_orig"], dim=0)
    assert torch.allclose(layer.eval().bias, expected)
    remove_spectral_norm(layer, "bias", leave_parametrized=False)
    assert_same_outputs(lazy_kind, layer, saved, relative_error)


def lazy_kind_with(kind, made):
    return type(kind)(kind.name, lambda: made, kind.inputs)


def test_cancelling_a_lazy_registration_leaves_no_load_hook():
    layer = nn.LazyLinear(3)
    hooks = len(layer._load_state_dict_pre_hooks)
    spectral_norm(spectral_norm(layer), "bias")
    remove_spectral_norm(layer)
    saved = spectral_norm(nn.Linear(2, 3), "bias")
    layer.load_state_dict(saved.state_dict(), strict=True)
    layer(torch.ones(1, 2))
    assert list(sigmas(layer)) == ["bias"]
    remove_spectral_norm(layer, "bias")
    assert hooks == 1
    assert not layer._load_state_dict_pre_hooks
