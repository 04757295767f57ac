"""Which parameters of a model apply_spectral_norm takes, and what it says of the others."""

import pytest
from torch import nn
from torch.nn.utils import parametrize

from snorm_triton import apply_spectral_norm, left_out, sigmas


def test_names_take_attention_and_recurrent_layers():
    model = nn.Sequential(nn.MultiheadAttention(8, 2), nn.GRU(4, 3), nn.LayerNorm(4))
    apply_spectral_norm(model, names=("weight", "in_proj_weight", "weight_*"))
    assert list(sigmas(model)) == [
        "0.in_proj_weight",
        "0.out_proj.weight",
        "1.weight_ih_l0",
        "1.weight_hh_l0",
    ]
    assert left_out(model) == []


def test_where_nothing_matches_it_says_so():
    with pytest.warns(UserWarning, match=r"nothing of GRU: left out are weight_ih_l0"):
        apply_spectral_norm(nn.GRU(4, 3))
    with pytest.raises(ValueError, match=r"names: 'in_proj' matches no parameter"):
        apply_spectral_norm(nn.GRU(4, 3), names="in_proj")


def test_types_without_such_a_parameter_are_passed_over():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Sequential(nn.Linear(2, 2)))
    apply_spectral_norm(model, include_types=(nn.Module,), exclude_types=nn.ReLU)
    assert list(sigmas(model)) == ["0.weight", "2.0.weight"]


def test_a_weight_that_is_a_buffer_is_refused():
    class Own(nn.Linear):
        def __init__(self):
            super().__init__(3, 2)
            weight = self.weight
            del self.weight
            self.weight_bar = weight
            self.register_buffer("weight", weight.detach().clone())

    model = nn.Sequential(nn.Linear(3, 3), Own())
    with pytest.raises(ValueError, match=r"1\.weight is a buffer"):
        apply_spectral_norm(model)
    assert not parametrize.is_parametrized(model[0])
