"""A model's weights where work for its device is queued on several streams.

The streams of a CPU do nothing, so what is asked of them is looked at; tests/gpu has real ones.
"""

from unittest import mock

import pytest
import torch
from torch import nn

from snorm_triton import streams
from whole_models import Model, normalized


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
    recorded = mock.patch.object(torch.Tensor, "record_stream", autospec=True)
    with recorded as record_stream:
        yield main, side, queue, record_stream


def test_another_stream_waits_for_a_prepared_weight_and_keeps_its_memory(two_streams):
    main, side, queue, record_stream = two_streams
    model = normalized(Model())
    model(torch.randn(3, 6), meanwhile=lambda: queue.append(side))
    assert side.waited_for == [main]
    assert main.waited_for == []
    ((tensor, stream), _) = record_stream.call_args
    assert tensor.shape == model.last.weight.shape
    assert stream is side


def test_the_same_stream_waits_for_nothing(two_streams):
    main, _, _, record_stream = two_streams
    normalized(nn.Sequential(Model()))(torch.randn(3, 6))
    assert main.waited_for == []
    record_stream.assert_not_called()
