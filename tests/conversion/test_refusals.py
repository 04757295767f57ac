"""What cannot be converted is named, and nothing is changed."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils import spectral_norm as legacy_spectral_norm
from torch.nn.utils.parametrizations import _SpectralNorm

from converted_models import assert_unchanged, entries
from snorm_triton import (
    SpectralNormParametrization,
    convert_spectral_norm,
    sigmas,
    spectral_norm,
)


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
    assert "0.weight" in sigmas(model)
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
