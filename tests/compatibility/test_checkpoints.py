"""Checkpoints, and models normalized by another spectral norm."""

import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import spectral_norm as legacy_spectral_norm

from snorm_triton import convert_spectral_norm, convert_state_dict, sigmas


def model_of(spectral_norm):
    return nn.Sequential(
        spectral_norm(nn.Conv2d(3, 4, 3)), nn.Flatten(), spectral_norm(nn.Linear(36, 2))
    )


def trained(spectral_norm):
    model = model_of(spectral_norm)
    for _ in range(3):
        model(images())
    return model


def images():
    return torch.randn(2, 3, 5, 5)


def assert_same_outputs(model, other):
    inputs = images()
    expected = model.eval()(inputs)
    assert (other.eval()(inputs) - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.promise(
    "A checkpoint of torch's parametrization",
    hook=("every key missing and unexpected", RuntimeError),
)
@pytest.mark.parametrize("assign", [False, True])
def test_parametrization_checkpoint(sn, assign):
    saved = trained(parametrizations.spectral_norm)
    model = model_of(sn.spectral_norm)
    model.load_state_dict(saved.state_dict(), strict=True, assign=assign)
    assert_same_outputs(saved, model)


@pytest.mark.promise(
    "A checkpoint of the legacy hook (`weight_orig`, `weight_u`, `weight_v`)",
    parametrization=("every key missing and unexpected", RuntimeError),
)
@pytest.mark.parametrize("assign", [False, True])
def test_legacy_checkpoint(sn, assign):
    saved = trained(legacy_spectral_norm)
    model = model_of(sn.spectral_norm)
    model.load_state_dict(saved.state_dict(), strict=True, assign=assign)
    assert_same_outputs(saved, model)


@pytest.mark.promise(
    "The same without `_metadata`, as safetensors keeps it",
    parametrization=("every key missing and unexpected", RuntimeError),
)
def test_legacy_checkpoint_without_metadata(sn):
    saved = trained(legacy_spectral_norm)
    model = model_of(sn.spectral_norm)
    model.load_state_dict(dict(saved.state_dict()), strict=True)
    assert_same_outputs(saved, model)


@pytest.mark.promise(
    "The same of torch before 1.0, which has no `weight_v`",
    parametrization=("every key missing and unexpected", RuntimeError),
)
def test_legacy_checkpoint_without_v(sn):
    saved = trained(legacy_spectral_norm)
    old = saved.state_dict()
    for name in ("0", "2"):
        old[f"{name}.weight"] = saved.get_submodule(name).weight.detach()
        del old[f"{name}.weight_v"]
        del old._metadata[name]["spectral_norm"]
    migrated = model_of(legacy_spectral_norm)
    migrated.load_state_dict(old)
    model = model_of(sn.spectral_norm)
    model.load_state_dict(old, strict=True)
    assert_same_outputs(migrated, model)


@pytest.mark.promise(
    "A checkpoint whose u does not fit: refused, and the layer is what it was",
    torch=("the weight and v are loaded", AssertionError),
)
def test_checkpoint_that_does_not_fit(sn):
    saved = sn.spectral_norm(nn.Linear(4, 3)).state_dict()
    saved[sn.keys.u] = torch.ones(5)
    del saved["bias"]
    layer = sn.spectral_norm(nn.Linear(4, 3))
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    with pytest.raises(RuntimeError, match=f"size mismatch for {re.escape(sn.keys.u)}"):
        layer.load_state_dict(saved, strict=False)
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.promise(
    "A checkpoint loads into torch's parametrization",
    hook=("every key missing and unexpected", RuntimeError),
)
def test_checkpoint_for_torch(sn):
    saved = trained(sn.spectral_norm)
    model = model_of(parametrizations.spectral_norm)
    model.load_state_dict(saved.state_dict(), strict=True)
    assert_same_outputs(saved, model)


@pytest.mark.promise("A checkpoint written for the legacy hook", parametrization="none")
def test_checkpoint_for_the_legacy_hook(sn):
    saved = trained(sn.spectral_norm)
    model = model_of(legacy_spectral_norm)
    written = saved.state_dict()
    if not sn.is_hook:
        written = convert_state_dict(written, to="legacy")
    model.load_state_dict(written, strict=True)
    assert_same_outputs(saved, model)


@pytest.mark.promise(
    "A model normalized by torch's parametrization or hook, converted in place between two steps",
    torch="none",
)
@pytest.mark.parametrize("theirs", [parametrizations.spectral_norm, legacy_spectral_norm])
def test_conversion_in_place(sn, theirs):
    model = trained(theirs)
    optimizer = torch.optim.Adam(model.parameters())
    model(images()).sum().backward()
    optimizer.step()
    parameters = set(model.parameters())
    inputs = images()
    expected = model.eval()(inputs)
    assert len(sigmas(convert_spectral_norm(model))) == 2
    assert set(model.parameters()) == parameters
    assert (model(inputs) - expected).norm() < 1e-5 * expected.norm()
    model.train()(inputs).sum().backward()
    optimizer.step()
    assert all(parameter in optimizer.state for parameter in parameters)
