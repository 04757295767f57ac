"""After any change an access that is made again is one that is looked at."""

from unittest import mock

import pytest
import torch

from layer_changes import CHANGES
from snorm_triton.parametrizations import spectral_norm as parametrization_module
from standing_layers import layer_of, train

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


def after(change, **options):
    layer = layer_of(**options)
    for do in (train, train, train, change, train, train):
        do(layer)
    grads = [each.grad for each in layer.parameters()]
    sigma = layer.parametrizations.weight[0].sigma
    return [*layer.state_dict().values(), *grads, sigma, layer.weight]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "options",
    [{}, {"bound": 0.5, "scale": 2.0}, {"power_iter": "update"}],
    ids=["plain", "bounded", "update"],
)
def test_after_any_change_it_is_as_looked_at(change, options):
    standing = after(change, **options)
    with mock.patch.object(parametrization_module, "standing_access", return_value=None):
        looked_at = after(change, **options)
    for one, other in zip(standing, looked_at, strict=True):
        if one is None or other is None:
            assert one is other
        else:
            assert torch.equal(one, other)
