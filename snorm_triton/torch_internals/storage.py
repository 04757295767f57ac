"""Which memory holds a tensor."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .door import private

_WeakRef = private("torch.multiprocessing.reductions", "StorageWeakRef")


class _Address:
    """In place of a weak reference: equal where the address is, which memory to come may have."""

    def __init__(self, storage: Any) -> None:
        self.address = storage.data_ptr()

    def expired(self) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Address) and self.address == other.address

    def __hash__(self) -> int:
        return hash(self.address)


def memory_of(tensor: Tensor) -> Any:
    """A weak reference to the tensor's memory: it is known from any that is ever there instead.

    Not to the tensor: one that is weakly referred to cannot be swapped, as loading and converting a
    module may do.
    """
    storage = tensor.untyped_storage()
    return _Address(storage) if _WeakRef is None else _WeakRef(storage)


def version(tensor: Tensor) -> int:
    """Of its memory, by which changes in place are told; one made in inference mode has none."""
    return 0 if tensor.is_inference() else tensor._version
