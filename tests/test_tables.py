"""Tables of many weights: where they lie, and which memory a graph's capture takes."""

import pytest
import torch
from torch import nn

from snorm_triton import apply_spectral_norm

pytestmark = [
    pytest.mark.interpreted,
    pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning"),
]
CPU = torch.device("cpu")


class Weights(nn.Module):
    """Returns the weights of its layers."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self):
        return [layer.weight for layer in self.layers]


def model():
    layers = nn.Linear(6, 5), nn.Linear(4, 7)
    return apply_spectral_norm(Weights(*layers), foreach=True, backend="triton")


def test_a_table_does_not_follow_the_default_device():
    ours, expected = model(), [(5, 6), (7, 4)]
    with torch.device("meta"):
        weights = ours()
    assert [tuple(weight.shape) for weight in weights] == expected
    for weight in weights:
        assert weight.device == CPU
        assert weight.isfinite().all()


def test_a_table_is_kept_from_forward_to_forward(monkeypatch):
    from snorm_triton.kernels import plan

    ours, uploads, upload = model(), [], plan.upload
    monkeypatch.setattr(plan, "upload", lambda *args: uploads.append(1) or upload(*args))
    for _ in range(3):
        ours()
    assert len(uploads) == 1
    monkeypatch.setattr("snorm_triton.kernels.launch.is_capturing", lambda device: True)
    ours()  # the graph's own, uploaded by each of its replays
    assert len(uploads) == 2
    monkeypatch.setattr("snorm_triton.kernels.launch.is_capturing", lambda device: False)
    ours()
    assert len(uploads) == 2


def test_memory_that_a_graph_copies_from_is_given_out_once(monkeypatch):
    from snorm_triton.kernels import pinned

    def empty(size, pin_memory, **options):
        assert pin_memory
        return torch.arange(size, **options)

    monkeypatch.setattr(pinned, "_rest", None)
    monkeypatch.setattr(pinned.torch, "empty", empty)
    pinned.prepare()
    first, second = pinned.take(64), pinned.take(32)
    assert (first.tolist(), second.tolist()) == (list(range(64)), list(range(64, 96)))
    rest = pinned._rest
    pinned.prepare()
    assert pinned._rest is rest
    assert len(pinned.take(2**20)) == 2**20  # more than there is
    assert pinned._rest is rest
