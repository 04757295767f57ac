"""A graph captured after a forward and a backward loads no kernel: it cannot be done then."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from bench.stubbed import stubbed_launches
from snorm_triton import apply_spectral_norm, apply_weight_norm
from snorm_triton.kernels import launch
from snorm_triton.kernels.launcher import Launcher
from snorm_triton.ops import streams

AS_IT_IS = launch.Launch.__call__


class Weights(nn.Module):
    """Small and large, a row of one, and two that lie in an order of their own."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.Linear(8, 8),
                nn.Linear(300, 200),
                nn.Conv2d(16, 32, 3),
                nn.Conv2d(16, 32, 3).to(memory_format=torch.channels_last),
                nn.ConvTranspose2d(32, 16, 4),
                nn.Linear(1000, 1),
            ]
        )

    def forward(self):
        return [layer.weight for layer in self.layers]


@contextmanager
def launched(monkeypatch):
    """The compiled kernels that are launched, of which none is: functions and their keys."""
    seen = set()

    def note(kernel, programs, /, **arguments):
        key, _ = Launcher(kernel).specialize(arguments)
        assert key is not None
        seen.add((kernel.fn.__name__, key))

    with stubbed_launches(), monkeypatch.context() as patch:
        patch.setattr(launch, "run", note)
        patch.setattr(launch.Launch, "__call__", AS_IT_IS)
        yield seen


def iterate(model):
    model()


def train(model):
    weights = model()
    torch.autograd.backward(weights, [torch.ones_like(weight) for weight in weights])


def replay(model):
    first, second = model(), model()
    assert len(first) == len(second)


@torch.no_grad()
def evaluate(model):
    model.eval()
    model()


STEPS = [iterate, train, replay, evaluate]


@pytest.mark.parametrize("foreach", [True, False], ids=["foreach", "one by one"])
@pytest.mark.parametrize("policy", ["access", "update"])
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_spectral_norms(step, policy, foreach, monkeypatch):
    options = {"power_iter": policy, "cache_evaluation": False}
    with stubbed_launches():
        model = apply_spectral_norm(Weights(), foreach=foreach, **options)
    assert_nothing_new_is_captured(model, step, monkeypatch)


@pytest.mark.parametrize("foreach", [True, False], ids=["foreach", "one by one"])
@pytest.mark.parametrize("step", [train, evaluate], ids=lambda step: step.__name__)
def test_weight_norms(step, foreach, monkeypatch):
    with stubbed_launches():
        model = apply_weight_norm(Weights(), foreach=foreach, cache_evaluation=False)
    assert_nothing_new_is_captured(model, step, monkeypatch)


def assert_nothing_new_is_captured(model, step, monkeypatch):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.step()
    with launched(monkeypatch) as compiled:
        for _ in range(3):
            step(model)
            optimizer.step()
    with launched(monkeypatch) as captured, monkeypatch.context() as patch:
        for module in (streams, launch):
            patch.setattr(module, "is_capturing", lambda device: True)
        step(model)
    assert captured
    assert captured <= compiled
