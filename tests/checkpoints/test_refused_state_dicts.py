"""State dicts that cannot be converted: the entry is named, and nothing is changed."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import spectral_norm as legacy_spectral_norm

from saved_states import assert_same_entries, legacy_state, new_state
from snorm_triton import convert_state_dict, spectral_norm


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


@pytest.mark.parametrize(
    "weight",
    [
        torch.ones(1).expand(4, 3),
        torch.ones(4, 3, device="meta"),
        torch.ones(4, 3).to_sparse(),
        torch.ones(4, 3, dtype=torch.int32),
    ],
    ids=["expanded", "meta", "sparse", "integer"],
)
@pytest.mark.parametrize("key", ["weight_orig", "weight"])
def test_a_v_is_computed_from_dense_weights_alone(weight, key):
    state = legacy_state(weight_v=None, **{key: weight})
    message = rf"a\.weight_v is missing, and to compute it a\.{key} must be .*\(4, 3\)"
    with pytest.raises(ValueError, match=message):
        convert_state_dict(state)
    assert state["a." + key] is weight


def test_a_weight_as_last_normalized_has_the_shape_of_the_weight():
    for weight in (torch.ones(3, 4), "x"):
        with pytest.raises(ValueError, match=r"to compute it a\.weight must be .*\(4, 3\)"):
            convert_state_dict(legacy_state(weight_v=None, weight=weight))


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
