"""A model's weights where work for its device is queued on several streams.

The streams of a CPU do nothing, so what is asked of them is looked at; tests/gpu has real ones.
"""

import pytest
import torch
from torch import nn

from snorm_triton.ops import streams
from whole_models import Model, iterations, normalized, state_of


class Stream:
    """What is asked of a stream."""

    def __init__(self):
        self.waited_for = []

    def wait_stream(self, other):
        self.waited_for.append(other)


@pytest.fixture
def two_streams(monkeypatch):
    main, side = Stream(), Stream()
    queue = [main]
    monkeypatch.setattr(streams, "current", lambda device: queue[-1])
    recorded = []

    def record(tensor, stream):
        recorded.append((tensor.shape, stream))

    monkeypatch.setattr(torch.Tensor, "record_stream", record)
    return main, side, queue, recorded


def test_another_stream_waits_for_a_prepared_weight_and_keeps_its_memory(two_streams):
    main, side, queue, recorded = two_streams
    model = normalized(Model())
    model(torch.randn(3, 6), meanwhile=lambda: queue.append(side))
    assert side.waited_for == [main]
    assert main.waited_for == []
    shapes = [(5, 8), (5,), (8,), ()]  # W / sigma, and what a recomputation takes it by
    assert recorded == [(shape, side) for shape in shapes]


def test_the_same_stream_waits_for_nothing(two_streams):
    main, _, _, recorded = two_streams
    normalized(nn.Sequential(Model()))(torch.randn(3, 6))
    assert main.waited_for == []
    assert recorded == []


def test_a_graph_does_not_wait_for_what_was_prepared_outside_of_it(two_streams, monkeypatch):
    _, side, queue, recorded = two_streams
    model = normalized(Model())
    before = state_of(model.last)

    def capture():
        queue.append(side)
        monkeypatch.setattr(streams, "is_capturing", lambda device: True)

    model(torch.randn(3, 6), meanwhile=capture)
    assert side.waited_for == recorded == []
    assert iterations(model.last, before) == 2  # once ahead, once in the graph


@pytest.mark.parametrize("evaluations", [1, 2, 4])
@torch.no_grad()
def test_another_stream_waits_for_evaluations(two_streams, monkeypatch, evaluations):
    main, side, queue, _ = two_streams
    monkeypatch.setattr(streams, "handle", lambda device: id(queue[-1]))
    model, x = normalized(Model()).eval(), torch.randn(3, 6)
    for _ in range(evaluations):
        model(x)
    queue.append(side)
    model(x)
    assert side.waited_for == [main, main]


@pytest.mark.parametrize("evaluations", [1, 2, 4])
@torch.no_grad()
def test_a_graph_takes_no_evaluation_from_outside_of_it(two_streams, monkeypatch, evaluations):
    monkeypatch.setattr(streams, "handle", lambda device: 1)
    model, x = normalized(Model()).eval(), torch.randn(3, 6)
    for _ in range(evaluations):
        model(x)
    outside, inside = model.last.weight, []
    monkeypatch.setattr(streams, "is_capturing", lambda device: True)
    model(x, lambda: inside.append(model.last.weight))
    assert inside[0].data_ptr() != outside.data_ptr()
