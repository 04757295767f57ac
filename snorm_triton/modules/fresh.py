"""The list of a module that has not been called yet: what is written into its tensor stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import streams
from ..parametrizations import updates
from ..parametrizations.base import evaluating
from ..parametrizations.singular_vectors import WARM_UP_ITERATIONS
from ..torch_internals import functorch
from ..torch_internals.aside import aside
from ..torch_internals.tracing import constant_while_compiling, is_tracing
from .access import (
    ConstrainedList,
    own_original,
    refresh_list,
    watches,
)
from .lost_changes import is_in_forward
from .reading import make_fast, read_through

_REMEMBERED = 3


class FreshList(ConstrainedList):
    """Before the module's first forward: what is written into the tensor becomes the original.

    That is how code written for :func:`torch.nn.utils.spectral_norm` initializes a model, by
    ``nn.init`` or through ``.data``: the weight that its hook hands out is the original until then.
    Becomes a :class:`ConstrainedList` at that forward, and nothing of this remains.
    """

    # What was handed out last, each with a copy: a client may hold one and ask for another's shape.
    _shown: tuple[tuple[Tensor, Tensor], ...] = ()
    _born = 0  # steps of optimizers until then

    def forward(self) -> Tensor:
        """The tensor, parametrized."""
        if torch.compiler.is_compiling():
            self.settle()
            return super().forward()
        if is_tracing():
            aside(self.adopt)
            return super().forward()
        self.adopt()
        if self._is_over():
            self.__dict__.pop("_shown", None)
            self.__class__ = ConstrainedList  # type: ignore[assignment]
            return self.forward()
        parametrized = self._parametrized()
        if type(parametrized) is Tensor and not parametrized.is_meta and not functorch.active():
            with torch.no_grad():
                shown = (*self._shown, (parametrized, parametrized.clone()))
                self.__dict__["_shown"] = shown[-_REMEMBERED:]
        return parametrized

    @torch.no_grad()
    def adopt(self) -> None:
        """Take over what was written into the tensor since it was handed out."""
        shown = self.__dict__.pop("_shown", ())
        is_new = [self._take_over(tensor.detach(), before) for tensor, before in shown]
        if any(is_new):
            refresh_list(self, WARM_UP_ITERATIONS)
        if shown:
            self.__dict__["_shown"] = shown

    # A method, for torch 2.11 takes no module as the argument of a constant function.
    @constant_while_compiling
    def settle(self) -> None:
        """Adopt now: what is compiled, or computed together, reads the original."""
        self.adopt()

    def _take_over(self, now: Tensor, before: Tensor) -> bool:
        is_new = (now != before) & ~(now.isnan() & before.isnan())
        if not is_new.any():
            return False
        written = now
        # Of a tensor written in part the rest is the original's; all of it may hold by chance some
        # value that it had.
        if 2 * is_new.sum() <= is_new.numel():
            written = torch.where(is_new, now, self._original())
        super().right_inverse(written.clone())
        before.copy_(now)
        return True

    def _original(self) -> Tensor:
        with evaluating():
            original = own_original(self)
            return self._parametrized() if original is None else original

    def _is_over(self) -> bool:
        return (
            updates.steps != self._born
            or is_in_forward(self)
            or any(streams.is_capturing(tensor.device) for tensor in self.parameters())
        )

    def right_inverse(self, value: Tensor) -> None:
        """Set the tensor before parametrization."""
        self.__dict__.pop("_shown", None)
        super().right_inverse(value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("original") and not torch.compiler.is_compiling():
            self.adopt()
        return super().__getattr__(name)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.adopt()
        super()._save_to_state_dict(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self.adopt()
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        self.adopt()
        return super().__getstate__()


def constrain(module: nn.Module, name: str) -> None:
    """Let the list of a tensor that ours is registered on be one of these, and the module fast."""
    all_lists: Any = module.parametrizations
    parametrizations = all_lists[name]
    if not isinstance(parametrizations, ConstrainedList):
        parametrizations.__class__ = FreshList
        parametrizations._born = updates.steps
    if watches(module):
        parametrizations.watched = name
    make_fast(type(module), name)
    read_through(type(module), name)
