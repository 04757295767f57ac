"""A state dict turned into another layout."""

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import spectral_norm as legacy_spectral_norm

from saved_states import assert_same_entries, assert_same_outputs, before_torch_1, trained
from snorm_triton import convert_state_dict, spectral_norm


@pytest.mark.parametrize("metadata", [True, False])
def test_there_and_back_gives_the_same_entries(layer_kind, metadata):
    layer = trained(legacy_spectral_norm, layer_kind)
    state = layer.state_dict()
    if not metadata:
        del state._metadata
    given = OrderedDict(state)
    ours = convert_state_dict(state, to="ours")
    again = convert_state_dict(ours, to="legacy")
    assert_same_entries(again, state)
    assert list(again) == list(state) == list(given)
    assert hasattr(ours, "_metadata") == hasattr(again, "_metadata") == metadata
    if metadata:
        assert again._metadata == state._metadata

    reference = spectral_norm(layer_kind.make(), layer_kind.parameter).state_dict()
    assert set(ours) == set(reference)
    if metadata:
        assert dict(ours._metadata) == dict(reference._metadata)
    assert_same_entries(convert_state_dict(convert_state_dict(ours, "legacy"), "torch"), ours)


def test_torchs_loaders_take_what_is_converted(layer_kind, relative_error):
    ours = trained(spectral_norm, layer_kind)
    legacy = legacy_spectral_norm(layer_kind.make(), layer_kind.parameter)
    converted = convert_state_dict(ours.state_dict(), "legacy")
    assert converted._metadata[""]["spectral_norm"] == {f"{layer_kind.parameter}.version": 1}
    legacy.load_state_dict(converted, strict=True)
    assert_same_outputs(layer_kind, legacy, ours, relative_error)
    new = parametrizations.spectral_norm(layer_kind.make(), layer_kind.parameter)
    new.load_state_dict(convert_state_dict(legacy.state_dict(), "torch"), strict=True)
    assert_same_outputs(layer_kind, new, ours, relative_error)


def test_every_other_entry_stays_in_its_place():
    def model(norm):
        return nn.Sequential(nn.BatchNorm1d(3), norm(norm(nn.Linear(3, 2)), "bias"), nn.PReLU())

    state = model(legacy_spectral_norm).state_dict(prefix="module.d.")
    state["step"] = 7
    converted = convert_state_dict(state)
    assert "module.d.1.parametrizations.bias.original" in converted
    assert not [key for key in converted if "bias_" in key]
    position = list(state).index("module.d.1.weight_orig")
    assert list(converted)[position] == "module.d.1.parametrizations.weight.original"
    for key in state.keys() & converted.keys():
        assert converted[key] is state[key]
    assert converted["step"] == 7
    assert list(converted)[-1] == "step"
    versions = state._metadata["module.d.1"]["spectral_norm"]
    assert versions == {"weight.version": 1, "bias.version": 1}
    assert "spectral_norm" not in converted._metadata["module.d.1"]


def test_one_of_two_parameters_keeps_its_note():
    state = legacy_spectral_norm(nn.Linear(3, 3)).state_dict()
    mixed = convert_state_dict(state)
    extra = legacy_spectral_norm(nn.Linear(3, 3), "bias").state_dict()
    mixed |= {key: extra[key] for key in extra if key.startswith("bias_")}
    legacy = convert_state_dict(mixed, "legacy")
    assert legacy._metadata == OrderedDict(
        {"": {"version": 1, "spectral_norm": {"weight.version": 1}}}
    )
    assert {"weight_u", "bias_u"} <= legacy.keys()


def test_tied_entries_stay_tied():
    layer = legacy_spectral_norm(nn.Linear(3, 3))
    state = convert_state_dict(nn.Sequential(layer, nn.ReLU(), layer).state_dict())
    keys = [f"parametrizations.weight.{rest}" for rest in ("original", "0._u", "0._v")]
    for key in keys:
        assert state[f"0.{key}"].data_ptr() == state[f"2.{key}"].data_ptr()


def test_a_conversion_to_the_layout_it_has_changes_nothing():
    ours = spectral_norm(nn.Linear(3, 2)).state_dict()
    assert_same_entries(convert_state_dict(ours, "torch"), ours)
    legacy = legacy_spectral_norm(nn.Linear(3, 2)).state_dict()
    assert_same_entries(convert_state_dict(legacy, "legacy"), legacy)
    assert_same_entries(convert_state_dict(ours), ours)


def test_what_is_called_alike_and_is_no_spectral_norm_stays():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.pos_bias_u = nn.Parameter(torch.ones(2, 3))
            self.pos_bias_v = nn.Parameter(torch.ones(2, 3))
            self.b_u = nn.Parameter(torch.ones(3))
            self.scaled = nn.Linear(2, 2)
            self.scaled.weight_orig = nn.Parameter(torch.ones(2))
            self.pruned = prune.l1_unstructured(nn.Linear(3, 3), "weight", amount=2)
            self.weighted = parametrizations.weight_norm(nn.Linear(3, 3))
            self.orthogonal = parametrizations.orthogonal(nn.Linear(3, 3))

    state = Attention().state_dict()
    for to in ("ours", "legacy"):
        assert_same_entries(convert_state_dict(state, to), state)


def test_the_absent_v_of_a_checkpoint_is_computed(relative_error):
    saved = legacy_spectral_norm(nn.Conv2d(3, 4, 2))
    saved(torch.randn(1, 3, 4, 4))
    old = before_torch_1(saved)
    new = parametrizations.spectral_norm(nn.Conv2d(3, 4, 2)).eval()
    converted = convert_state_dict(old, "torch")
    assert list(converted)[-2:] == [f"parametrizations.weight.0._{vector}" for vector in "uv"]
    new.load_state_dict(converted, strict=True)
    assert relative_error(new.weight, old["weight"]) < 1e-5


def test_where_the_shape_leaves_the_dimension_open_it_must_be_said(relative_error):
    saved = legacy_spectral_norm(nn.ConvTranspose2d(4, 4, 2))
    saved(torch.randn(1, 4, 3, 3))
    state = {f"up.{key}": value for key, value in before_torch_1(saved).items()}
    with pytest.raises(ValueError, match=r"up\.weight_v is missing.*dims={'up\.weight': 0}"):
        convert_state_dict(state)
    converted = convert_state_dict(state, dims={"up.weight": 1})
    layer = spectral_norm(nn.ConvTranspose2d(4, 4, 2)).eval()
    layer.load_state_dict({key.removeprefix("up."): value for key, value in converted.items()})
    assert relative_error(layer.weight, state["up.weight"]) < 1e-5
    with pytest.raises(ValueError, match=r"dims: up\.weight has 2 in dimension 2, but .*_u has 4"):
        convert_state_dict(state, dims={"up.weight": 2})
    with pytest.raises(ValueError, match=r"dims\['up\.weight'\] must be in \[-4, 3\]"):
        convert_state_dict(state, dims={"up.weight": 4})
    with pytest.raises(ValueError, match=r"dims: no spectral norm on 'down\.weight'"):
        convert_state_dict(state, dims={"down.weight": 1})
