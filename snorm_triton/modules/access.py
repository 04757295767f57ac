"""The list of parametrizations of a tensor, which hands the tensor out.

It notices what is done in place to what it handed out, which is done to a temporary, and lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from ..parametrizations.base import Parametrization, evaluating
from ..parametrizations.handed_out import Version, version_of
from ..parametrizations.prepared import PreparedWeight
from ..parametrizations.prepared_round import PreparedMember
from ..torch_internals.hooks import has_hooks
from .lost_changes import warn

Ready = PreparedWeight | PreparedMember  # what reads get as it is


class ConstrainedList(ParametrizationList):
    """As torch's, but it notices where the tensor that it handed out is changed in place.

    And where it holds one parametrization, on which there are no hooks, it neither searches for
    further ones nor goes through Module.__call__: at an access of a small weight each takes as long
    as a matrix-vector product.
    """

    watched: str | None = None  # the tensor's name, where changes of it are looked for
    _handed_out: Version | None = None
    _ready: Ready | None = None

    def forward(self) -> Tensor:
        """The tensor, parametrized."""
        known = self.__dict__  # past Module's attribute lookup
        if known.get("watched") is None or torch.compiler.is_compiling():
            return self._parametrized()
        if "_ready" in known:
            self.put_away()
        last = known.get("_handed_out")
        if last is not None and last[0]._version != last[1]:
            self._forget()
            warn(self, known["watched"])
        parametrized = self._parametrized()
        known["_handed_out"] = version_of(parametrized, last)
        if not torch.is_grad_enabled():
            self._keep_ready()
        return parametrized

    def _keep_ready(self) -> None:
        """Let later evaluations without gradients read at once what this one has left."""
        parametrizations = self.__dict__["_modules"]
        only: Any = parametrizations["0"]
        prepared = getattr(only, "prepared", None)
        if type(prepared) is not PreparedWeight or len(parametrizations) > 1:
            return
        if prepared.outlives_forward and not only.options.autocast_output:
            self.hand_out(prepared)

    def hand_out(self, ready: Ready) -> None:
        """Let reads get what is prepared, unless there is something to be warned of first."""
        known = self.__dict__
        if "_ready" in known:  # an evaluation, of which changes are noticed all the same
            self.put_away()
        last = known.get("_handed_out")
        if known.get("watched") is not None and (last is None or last[0]._version == last[1]):
            known["_ready"] = ready

    def put_away(self) -> None:
        """End reads of what is ready; a change of it in place will be noticed all the same."""
        known = self.__dict__
        ready: Ready | None = known.pop("_ready", None)
        last = known.get("_handed_out")
        # A change of what was handed out last is still to be warned of.
        if ready is not None and (last is None or last[0]._version == last[1]):
            known["_handed_out"] = ready.handed_out(last) or last

    def _parametrized(self) -> Tensor:
        known = self.__dict__
        parametrizations = known["_modules"]
        if len(parametrizations) == 1:
            only = parametrizations["0"]
            if isinstance(only, Parametrization) and not has_hooks(only.__dict__):
                originals = known["_parameters"] or known["_buffers"]
                if "original" in originals or "original0" in originals:  # see held_originals
                    return only.forward(*originals.values())  # type: ignore[no-any-return]
        return super().forward()

    def settle(self) -> None:
        """Before the originals are read: see that they are what was written into the tensor."""

    def right_inverse(self, value: Tensor) -> None:
        """Set the tensor before parametrization: ``module.weight *= 2`` changes and assigns."""
        self._forget()
        super().right_inverse(value)

    def _forget(self) -> None:
        self.__dict__.pop("_handed_out", None)
        self.__dict__.pop("_ready", None)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._forget()  # it lies on the device that the tensor leaves
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        # What was handed out was handed out by this very module.
        return {key: value for key, value in self.__dict__.items() if key not in _OWN}


_OWN = ("_handed_out", "_ready", "_shown")


def originals_of(parametrizations: ParametrizationList) -> dict[str, Tensor]:
    """The tensors before parametrization by torch's names, be they parameters or buffers."""
    if isinstance(parametrizations, ConstrainedList):
        parametrizations.settle()
    held = held_originals(parametrizations)
    if held or parametrizations.is_tensor:
        return held or {"original": parametrizations.original}
    names = [f"original{i}" for i in range(parametrizations.ntensors)]
    return {name: getattr(parametrizations, name) for name in names}


def held_originals(parametrizations: ParametrizationList) -> dict[str, Tensor]:
    """Those that are the list's own parameters or buffers.

    None where they are attributes alone: of a replica of DataParallel, or of a tensor that a hook
    computes before each access, as pruning does.
    """
    held: Any = parametrizations._parameters or parametrizations._buffers
    return dict(held) if "original" in held or "original0" in held else {}


def own_original(parametrizations: ParametrizationList) -> Tensor | None:
    """The one tensor before parametrization that assigning sets to what is assigned, or None."""
    ours = [each for each in parametrizations if isinstance(each, Parametrization)]
    if parametrizations.is_tensor and all(each.original_is_tensor for each in ours):
        return parametrizations.original
    return None


def refresh_list(parametrizations: ParametrizationList, n_power_iterations: int) -> None:
    """Bring the state of each in line with the tensor as it is now, whatever the mode."""
    inputs: list[Any] = list(originals_of(parametrizations).values())
    with evaluating(), torch.no_grad():
        for parametrization in parametrizations:
            if isinstance(parametrization, Parametrization):
                parametrization.refresh(inputs[0], n_power_iterations)
            if parametrization is not parametrizations[-1]:
                inputs = [parametrization(*inputs)]


def watches(module: nn.Module) -> bool:
    """Whether to notice changes of ``module``'s weights: not where its own forward makes them."""
    renormalizes = getattr(module, "max_norm", None) is not None  # Embedding and EmbeddingBag
    return not renormalizes and not isinstance(module, nn.RNNBase)  # cuDNN moves its weights
