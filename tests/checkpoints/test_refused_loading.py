"""What a normalized module does not load: nothing of it is, and torch says why."""

import pytest
import torch
from torch import nn
from torch.nn.utils import spectral_norm as legacy_spectral_norm

from snorm_triton import convert_state_dict, spectral_norm


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
