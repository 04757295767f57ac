"""Launches of compiled kernels past the bookkeeping that Triton does for each.

For every launch Triton binds the arguments, specializes them, builds a key of strings and looks for
hooks. What that finds depends on little: here the same little is the key to what it found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.jit import JITFunction

# Whose `CompiledKernel.run` and whose rules of specialization are known.
_KNOWN = ("3.6", "3.7", "3.8")
_is_known = triton.__version__.startswith(tuple(f"{version}." for version in _KNOWN))

Key = tuple[object, ...]


class _Compiled(NamedTuple):
    run: Any
    function: Any
    metadata: Any


class Launcher:
    """The kernels that Triton has compiled of one function, by what it specializes them on."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self._compiled: dict[Key, _Compiled] = {}
        self._takes = _is_known and type(kernel) is JITFunction and _is_plain(kernel)
        self._parameters: list[tuple[str, bool]] = []
        if self._takes:
            self._parameters = [(each.name, each.is_constexpr) for each in kernel.params]

    def __call__(self, programs: int, arguments: dict[str, Any]) -> None:
        """As ``kernel[(programs,)](**arguments)``, which takes whatever is not known here."""
        if not self._takes or _is_watched(self.kernel) or not _on_cuda(arguments):
            self.kernel[(programs,)](**arguments)
            return
        active = driver.active
        device = active.get_current_device()
        key, values = self.specialize(arguments)
        compiled = self._compiled.get((device, key)) if key is not None else None
        if compiled is not None:
            stream = active.get_current_stream(device)
            compiled.run(
                *(programs, 1, 1, stream, compiled.function, compiled.metadata, None, None, None),
                *values,
            )
            return
        made = self.kernel[(programs,)](**arguments)
        if (
            key is not None
            and type(made) is CompiledKernel
            and made.metadata.target.backend == "cuda"
        ):
            self._compiled[device, key] = _Compiled(made.run, made.function, made.packed_metadata)

    def again(
        self, programs: int, arguments: dict[str, Any], varying: Sequence[str]
    ) -> Again | None:
        """What makes this launch again with other tensors; None where each is looked at anew."""
        if not self._compiled or _is_watched(self.kernel) or not _on_cuda(arguments):
            return None
        if any(arguments[name].data_ptr() % 16 for name in varying):
            return None
        device = driver.active.get_current_device()
        key, values = self.specialize(arguments)
        compiled = self._compiled.get((device, key)) if key is not None else None
        if compiled is None:
            return None
        order = [name for name, _ in self._parameters]
        places = [(order.index(name), arguments[name].dtype) for name in varying]
        return Again(self.kernel, device, (programs, 1, 1), compiled, values, places)

    def specialize(self, arguments: dict[str, Any]) -> tuple[Key | None, list[Any]]:
        """What tells the compiled kernel for these arguments, and the arguments in order.

        Pointers are addresses among them. The key is None where Triton may look at more.
        """
        options = dict(arguments)
        key: list[object] = []
        values: list[Any] = []
        for name, is_constexpr in self._parameters:
            value = options.pop(name)
            kind = type(value)
            if is_constexpr:
                key.append(value)
            elif kind is int:
                key.append(_of_int(value))
            elif kind is float:
                key.append(kind)
            elif isinstance(value, Tensor):
                key.append(value.dtype)
                value = value.data_ptr()
                key.append(value % 16 == 0)
            elif value is None:  # a constant, as to Triton
                key.append(None)
            else:
                return None, values
            values.append(value)
        return (*key, *options.items()), values


class Again(NamedTuple):
    """A launch but for the addresses of some tensors."""

    kernel: Any
    device: int
    grid: tuple[int, int, int]
    compiled: _Compiled
    values: list[Any]
    places: list[tuple[int, torch.dtype]]  # of the tensors, among the values

    def __call__(self, tensors: Sequence[Tensor]) -> bool:
        """Launch; False where it is another launch, and nothing is done."""
        active = driver.active
        if _is_watched(self.kernel) or active.get_current_device() != self.device:
            return False
        values = self.values.copy()
        for (place, dtype), tensor in zip(self.places, tensors, strict=True):
            address = values[place] = tensor.data_ptr()
            if address % 16 or tensor.dtype is not dtype:
                return False
        run, function, metadata = self.compiled
        stream = active.get_current_stream(self.device)
        run(*self.grid, stream, function, metadata, None, None, None, *values)
        return True


def _of_int(value: int) -> object:
    """A one is a constant; of others it counts whether 16 divides them, and how many bits hold."""
    if value == 1:
        return 1
    if -(2**31) <= value < 2**31:
        return value % 16 == 0, 32
    return value % 16 == 0, 64 if value < 2**63 else -64


def _is_plain(kernel: Any) -> bool:
    """Whether all its parameters are specialized as they are by default."""
    return kernel.debug is None and not any(
        each.do_not_specialize
        or each.do_not_specialize_on_alignment
        or (not each.is_constexpr and (each.annotation_type or each.is_const))
        for each in kernel.params
    )


def _is_watched(kernel: Any) -> bool:
    """Whether a profiler or the like, or a debugger, is to be told of launches, or changes them."""
    runtime = triton.knobs.runtime
    return bool(
        kernel.pre_run_hooks
        or getattr(runtime.launch_enter_hook, "calls", runtime.launch_enter_hook)
        or getattr(runtime.launch_exit_hook, "calls", runtime.launch_exit_hook)
        or runtime.debug
        or runtime.add_stages_inspection_hook is not None
        or triton.knobs.compilation.instrumentation_mode
    )


def _on_cuda(arguments: dict[str, Any]) -> bool:
    """Whether the tensors are on a GPU: all are where the first is."""
    for value in arguments.values():
        if isinstance(value, Tensor):
            return value.is_cuda
    return False
