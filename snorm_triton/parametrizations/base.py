"""The contract of all constraints: what is done to a module is written against it alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol
from weakref import WeakSet

import torch
from torch import Tensor, nn

from ..ops.recomputation import Checkpoints
from ..torch_internals import functorch
from .options import ConstraintOptions

SUFFIXES = ("_orig", "_u", "_v", "_g")  # of what torch's hooks make of a tensor, after its name
Originals = tuple[Tensor, ...]
"""The tensors before parametrization that torch registers: one, or as many as a constraint has."""


class Serving(Protocol):
    """A tensor computed ahead of an access that gets it."""

    def hand_over(self, originals: Originals, parametrization: Any) -> Tensor:
        """What the access gets."""


class Prepared(Protocol):
    """A tensor computed ahead of whatever accesses come."""

    def serving(self, originals: Originals, parametrization: Any) -> Serving | None:
        """What serves an access here and now; None where that gets no such tensor."""

    @property
    def outlives_forward(self) -> bool:
        """Whether it was computed without gradients, and is right until something changes."""


class Follower(Protocol):
    """Something that holds the tensors of parametrizations, or what was computed of them."""

    def forget_all(self) -> None:
        """They are moved."""


class Repeated(Protocol):
    """Accesses that are made again."""

    def holds(self) -> bool:
        """Whether they are the ones that are to be made, here and now."""

    def __call__(self) -> tuple[list[Tensor], Callable[[int, Tensor], Any]]:
        """A round of them: the tensors, and what gives one's whole output, by its number."""


class Parametrization(nn.Module):
    """A constraint on one tensor, for ``torch.nn.utils.parametrize.register_parametrization``.

    A subclass computes the tensor, of the weight's shape and memory layout, in ``forward``: of one
    original, or of as many as its ``right_inverse`` returns. Where :meth:`joins` says so, those of
    a whole model are computed together, by :meth:`access`, :meth:`compute` and :meth:`settle`. Its
    persistent buffers and its parameters are its state: copied, moved, saved, and loaded all or
    none.
    """

    # Attributes that belong to accesses of this very module: no copy and no file gets them.
    transient: ClassVar[tuple[str, ...]] = ("prepared", "_followers")
    prepared: Prepared | None = None
    _followers: WeakSet[Follower] | None = None
    options: ConstraintOptions
    follows_steps_alone = False  # the weight is a new temporary at each access
    owner: object  # of what checkpoints keep: the parametrization, but no copy of it

    def joins(self, originals: Originals) -> bool:
        """Whether an access to such plain tensors is computed with those of a whole model."""
        return False

    def access(self, originals: Originals, checkpoints: Checkpoints | None) -> Any:
        """What an access computes here and now: a value that :meth:`compute` takes."""
        raise NotImplementedError

    @staticmethod
    def compute(accesses: Sequence[Any]) -> list[Any]:
        """The results of a model's accesses: tuples, each with the constrained tensor in front."""
        raise NotImplementedError

    @staticmethod
    def rounds(parametrizations: Sequence[Any], accesses: Sequence[Any]) -> Repeated | None:
        """What makes these accesses, settled as well, in later forwards; None where nothing can."""
        return None

    def settle(self, access: Any, output: Any, checkpoints: Checkpoints | None) -> None:
        """Note what an access took."""

    def hand_over(self, originals: Originals, output: Any) -> Tensor:
        """What an access takes of an ``output`` that was computed ahead of it."""
        tensor: Tensor = output[0]
        return tensor if torch.is_grad_enabled() else tensor.detach()

    @property
    def original_is_tensor(self) -> bool:
        """Whether what is assigned becomes the one original as it is: it can be written in part."""
        return True

    @property
    def iterates(self) -> bool:
        """Whether an access in this mode changes the state where a change is due."""
        return False

    def output_dtype(self, weight: Tensor) -> torch.dtype:
        """The dtype that an access to ``weight`` returns here and now."""
        if self.options.autocast_output and weight.dtype == torch.float32:
            device_type = weight.device.type
            if torch.is_autocast_enabled(device_type):
                return torch.get_autocast_dtype(device_type)
        return weight.dtype

    def outlive_forward(self, originals: Originals) -> bool:
        """Whether what is computed of them here serves later accesses without gradients."""
        return (
            not torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and not functorch.active()
            and all(type(each) in (Tensor, nn.Parameter) for each in originals)
            and not torch.is_inference_mode_enabled()
            and not self.follows_steps_alone
            and "_is_fsdp_managed_module" not in self.__dict__
        )

    def state_tensors(self) -> tuple[Tensor, ...]:
        """What an evaluation is of besides the originals."""
        return self.own_parameters()

    def own_parameters(self) -> Originals:
        """Those of this module, such as a learned scale: what is computed is of them, too."""
        parameters = self.__dict__["_parameters"].values()  # past Module's attribute lookup
        return tuple(p for p in parameters if p is not None)

    def refresh(self, weight: Tensor, n_power_iterations: int) -> None:
        """Bring the state in line with ``weight``, the first original, as it is now, in place."""

    def reset_parameters(self) -> None:
        """Start the state anew, in place; the next access brings it in line."""

    def replaced(self) -> None:
        """The tensor before parametrization is another now."""

    def alias(self, suffix: str, originals: Originals) -> Tensor | None:
        """What torch's hooks call the tensor's name with ``suffix``, one of SUFFIXES."""
        return None

    def saved(self) -> dict[str, Tensor]:
        """What a state dict holds of it, by name."""
        persistent = {
            name: buffer
            for name, buffer in self._buffers.items()
            if buffer is not None and name not in self._non_persistent_buffers_set
        }
        return persistent | {name: p for name, p in self._parameters.items() if p is not None}

    def upgrade(
        self, state_dict: dict[str, Any], prefix: str, name: str, path: str
    ) -> dict[str, str]:
        """Give the entries of an older layout today's keys: the new ones with the old.

        Args:
            state_dict: changed in place.
            prefix: of the module's keys.
            name: the tensor's.
            path: of this parametrization's keys.
        """
        return {}

    def complete(self, state_dict: dict[str, Any], path: str, computed: Tensor | None) -> None:
        """Add what an upgraded entry lacks; ``computed``: the tensor as it was saved, or None."""

    @property
    def followers(self) -> WeakSet[Follower]:
        """What is to be told that this is moved."""
        if self._followers is None:
            self._followers = WeakSet()
        return self._followers

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self.prepared = None
        for follower in self._followers or ():
            follower.forget_all()
        return super()._apply(fn, recurse)

    def __prepare_scriptable__(self) -> Any:
        raise RuntimeError(
            "torch.jit.script cannot compile what is computed at each access: bake it in first, by "
            "snorm_triton.fold(model)"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in self.transient}


class _Evaluations(threading.local):
    depth = 0


evaluations = _Evaluations()
"""How many times this thread has entered :func:`evaluating`: its ``depth``."""


@contextmanager
def evaluating() -> Iterator[None]:
    """Accesses of this thread compute as in evaluation and write nothing, whatever the mode."""
    evaluations.depth += 1
    try:
        yield
    finally:
        evaluations.depth -= 1
