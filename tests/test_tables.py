"""Tables of many weights: where they lie, and which memory a graph's capture takes."""

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

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
    monkeypatch.setattr("snorm_triton.ops.streams.is_capturing", lambda device: True)
    ours()  # the graph's own, uploaded by each of its replays
    assert len(uploads) == 2
    monkeypatch.setattr("snorm_triton.kernels.launch.is_capturing", lambda device: False)
    monkeypatch.setattr("snorm_triton.ops.streams.is_capturing", lambda device: False)
    ours()
    assert len(uploads) == 2


def test_memory_that_a_graph_copies_from_is_given_out_once_and_stays(monkeypatch):
    from snorm_triton.kernels import pinned

    empty, slabs = torch.empty, []

    def pageable(size, pin_memory, **options):
        assert pin_memory
        slabs.append(StorageWeakRef((memory := empty(size, **options)).untyped_storage()))
        return memory

    monkeypatch.setattr(pinned, "_slabs", [])
    monkeypatch.setattr(pinned.torch, "empty", pageable)
    with torch.inference_mode():
        pinned.prepare()
    places = {pinned.take(1000).fill_(i).data_ptr() for i in range(100)}
    assert len(places) == 100
    assert len(slabs) == 1
    for _ in range(2):  # when more than half is taken there is another, for the next capture
        pinned.prepare()
    assert len(slabs) == 2
    assert len(pinned.take(2**20)) == 2**20  # more than there is
    assert not any(slab.expired() for slab in slabs)
