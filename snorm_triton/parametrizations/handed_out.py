"""What notices that a tensor that was handed out is changed in place."""

from __future__ import annotations

from torch import Tensor

from ..torch_internals import functorch

# A tensor's version as it was handed out, after a counter of what it is now: a tensor that shares
# the tensor's own, which every operation in place advances. It holds no graph, and no memory; a
# change through `.data` passes it by.
Version = tuple[Tensor, int]


def version_of(tensor: Tensor, last: Version | None) -> Version | None:
    """That of a plain tensor, None of one that has none; ``last`` is another, of its device."""
    if type(tensor) is not Tensor or functorch.is_wrapped(tensor):
        return None
    try:
        counter = counter_of(tensor, last)
        return counter, counter._version
    except RuntimeError:  # a tensor of inference
        return None


def counter_of(tensor: Tensor, last: Version | None) -> Tensor:
    """A tensor of the same versions, empty: as ``last`` is."""
    counter = tensor.detach()
    counter.data = tensor.new_empty(0) if last is None else last[0]
    return counter
