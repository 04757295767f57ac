"""State dicts: what a normalized module loads, and one layout turned into another."""

import copy
import io
import pickle
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils import spectral_norm as legacy_spectral_norm

from snorm_triton import convert_state_dict, remove_spectral_norm, sigmas, spectral_norm
from snorm_triton.checkpoints.missing_v import right_vector


def trained(norm, kind, **options):
    layer = norm(kind.make(), kind.parameter, **options)
    for _ in range(3):
        kind.run(layer, kind.inputs())
    return layer


def before_torch_1(layer, name="weight"):
    """The state dict that torch 0.4 saved: the weight as last used is there, v and version not."""
    state = layer.state_dict()
    state[name] = getattr(layer, name).detach()
    del state[f"{name}_v"]
    state._metadata = OrderedDict((key, {"version": 1}) for key in state._metadata)
    return state


def through_a_file(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def assert_same_outputs(kind, layer, reference, relative_error, tolerance=1e-5):
    inputs = kind.inputs()
    with torch.no_grad():
        expected = kind.run(reference.eval(), inputs)
        assert relative_error(kind.run(layer.eval(), inputs), expected) < tolerance


def assert_same_entries(state, expected):
    assert dict.keys(state) == dict.keys(expected)
    for key, value in expected.items():
        assert state[key].data_ptr() == value.data_ptr()
        assert torch.equal(state[key], value)


# Loading


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


@pytest.mark.parametrize("key", ["weight_orig", "weight_u", "weight_v"])
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("form", ["legacy", "ours"])
def test_a_spectral_norm_is_loaded_whole_or_not_at_all(key, assign, form):
    state = dict(legacy_spectral_norm(nn.Linear(4, 3)).state_dict())
    if form == "ours":
        state = convert_state_dict(state)
        key = {
            "weight_orig": "parametrizations.weight.original",
            "weight_u": "parametrizations.weight.0._u",
            "weight_v": "parametrizations.weight.0._v",
        }[key]
    state[key] = torch.ones(7)
    model = nn.Sequential(spectral_norm(nn.Linear(4, 3)), nn.Linear(3, 3))
    tensors = dict(model.state_dict(keep_vars=True))
    before = {key: value.detach().clone() for key, value in tensors.items()}
    state = {f"0.{name}": value for name, value in state.items() if name != "bias"}
    with pytest.raises(RuntimeError, match=f"size mismatch for 0.{key}: .* nothing of this"):
        model.load_state_dict(state, strict=False, assign=assign)
    for name, value in model.state_dict(keep_vars=True).items():
        assert value is tensors[name]
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("absent", ["weight_orig", "weight_u"])
def test_half_of_a_legacy_entry_is_not_loaded(absent):
    state = legacy_spectral_norm(nn.Linear(4, 3)).state_dict()
    del state[absent]
    layer = spectral_norm(nn.Linear(4, 3))
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    with pytest.raises(RuntimeError, match=r"(?s)Missing key.*Unexpected key.*weight_v"):
        layer.load_state_dict(state)
    for key, value in layer.state_dict().items():
        assert key == "bias" or torch.equal(value, before[key])


def test_a_stack_does_not_take_one_legacy_entry_for_two():
    layer = spectral_norm(spectral_norm(nn.Linear(4, 3)))
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\).*weight_orig"):
        layer.load_state_dict(legacy_spectral_norm(nn.Linear(4, 3)).state_dict())


# Converting


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


def legacy_state(**changes):
    state = {
        "a.weight_orig": torch.ones(4, 3),
        "a.weight_u": torch.ones(4),
        "a.weight_v": torch.ones(3),
    }
    state |= {f"a.{key}": value for key, value in changes.items()}
    return {key: value for key, value in state.items() if value is not None}


def new_state(**changes):
    state = convert_state_dict(legacy_state())
    state |= {f"a.parametrizations.weight.{key}": value for key, value in changes.items()}
    return {key: value for key, value in state.items() if value is not None}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (legacy_state(weight_orig=None), r"a\.weight_orig is missing beside a\.weight_u"),
        (legacy_state(weight_u=None), r"a\.weight_u is missing beside a\.weight_orig"),
        (legacy_state(weight_u=torch.ones(5)), r"a\.weight_u has shape \(5,\)"),
        (legacy_state(weight_u=torch.ones(4, 1)), r"a\.weight_u has shape \(4, 1\)"),
        (legacy_state(weight_v=torch.ones(4)), r"a\.weight_v .*must be \(3,\)"),
        (legacy_state(weight_orig=torch.ones(())), r"a\.weight_u .* a\.weight_orig of shape \(\)"),
        (legacy_state(weight_orig="x"), r"a\.weight_orig must be a tensor, got str"),
        (legacy_state(weight_v=None, weight_u=3.0), r"a\.weight_u must be a tensor, got float"),
        (new_state(original=None), r"a\.parametrizations\.weight\.original is missing"),
        (new_state(**{"0._u": None}), r"weight\.0\._u is missing beside .*weight\.0\._v"),
        (new_state(**{"0._v": None}), r"weight\.0\._v is missing beside .*weight\.0\._u"),
        (new_state(**{"0._u": torch.ones(5)}), r"a\.parametrizations\.weight\.0\._u has shape"),
    ],
)
@pytest.mark.parametrize("to", ["ours", "legacy"])
def test_an_entry_that_is_incomplete_or_does_not_fit_is_named(state, message, to):
    given = dict(state)
    with pytest.raises(ValueError, match=message):
        convert_state_dict(state, to)
    assert state == given


def test_what_the_metadata_declares_must_be_there():
    state = legacy_spectral_norm(nn.Linear(3, 2), "bias").state_dict(prefix="a.")
    del state["a.bias_u"], state["a.bias_v"]
    with pytest.raises(ValueError, match=r"a\.bias_u is missing beside a\.bias_orig"):
        convert_state_dict(state)


def test_what_the_legacy_layout_cannot_hold_is_named():
    twice = spectral_norm(spectral_norm(nn.Linear(3, 2))).state_dict()
    with pytest.raises(ValueError, match=r"weight\.1\._u has no place in the legacy layout"):
        convert_state_dict(twice, "legacy")
    after = spectral_norm(parametrizations.weight_norm(nn.Linear(3, 2))).state_dict()
    with pytest.raises(ValueError, match=r"weight\.original0 has no place in the legacy layout"):
        convert_state_dict(after, "legacy")
    assert_same_entries(convert_state_dict(after, "ours"), after)


def test_an_entry_in_both_layouts_is_refused():
    both = legacy_state() | new_state()
    with pytest.raises(ValueError, match=r"original is there already: a\.weight_orig would"):
        convert_state_dict(both)
    with pytest.raises(ValueError, match=r"a\.weight_orig is there already: a\.parametrizations"):
        convert_state_dict(both, "legacy")


def test_bad_arguments():
    with pytest.raises(ValueError, match="to must be one of ours, torch, legacy, got 'new'"):
        convert_state_dict({}, to="new")
    with pytest.raises(TypeError, match="state_dict must be a mapping, got Linear"):
        convert_state_dict(nn.Linear(2, 2))
