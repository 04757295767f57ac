"""State dicts that spectral norms have saved, whole and broken, and what is asked about them."""

from collections import OrderedDict

import torch
from torch import nn

from snorm_triton import convert_state_dict
from snorm_triton.cli.main import main


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


def model_of(norm):
    return nn.Sequential(norm(nn.Linear(4, 3)), nn.BatchNorm1d(3), norm(nn.Linear(3, 3)))


def convert(source, target, to="ours"):
    return main(["convert-checkpoint", str(source), str(target), "--to", to])
