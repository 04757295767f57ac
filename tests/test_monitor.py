"""log_sigmas writes each sigma once, in order, as one read of the device."""

import math

import torch
from torch import nn

from snorm_triton import apply_spectral_norm, log_sigmas, sigmas, spectral_norm


class Written(list):
    def add_scalar(self, tag, scalar_value, global_step):
        self.append((tag, scalar_value, global_step))


def test_each_sigma_with_its_tag_and_step():
    model = apply_spectral_norm(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 4).double()))
    spectral_norm(model[0])
    written = Written()
    log_sigmas(written, model, 5, prefix="D")
    expected = {f"D/{name}": sigma.item() for name, sigma in sigmas(model).items()}
    assert list(expected) == ["D/0.weight.0", "D/0.weight.1", "D/1.weight"]
    assert [tag for tag, _, _ in written] == list(expected)
    for tag, value, step in written:
        assert math.isclose(value, expected[tag], rel_tol=1e-6)
        assert step == 5


def test_one_read_of_the_device(monkeypatch):
    model = apply_spectral_norm(nn.Sequential(*[nn.Linear(3, 3) for _ in range(4)]))
    reads = []
    for name in ("item", "tolist", "__float__", "__bool__"):
        read = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, read=read: (reads.append(self), read(self))[1]
        )
    written = Written()
    log_sigmas(written, model)
    assert len(written) == 4
    assert len(reads) == 1


def test_a_model_without_any_writes_nothing():
    written = Written()
    log_sigmas(written, nn.Sequential(nn.Linear(3, 2), spectral_norm(nn.LazyLinear(2))))
    assert not written


def test_a_conversion_leaves_the_sigma_of_the_last_training():
    layer = spectral_norm(nn.Linear(5, 4)).double()
    layer.eval()(torch.randn(3, 5).double())
    layer.train()
    with torch.no_grad():
        layer.parametrizations.weight.original.mul_(100)
    assert layer.weight is not None
    expected = sigmas(layer)["weight"].item()
    assert math.isclose(sigmas(layer.float())["weight"].item(), expected, rel_tol=1e-6)
