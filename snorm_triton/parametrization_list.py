"""The list of parametrizations of a tensor, which notices what is done in place to its result.

That is done to a temporary, and lost.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

# A tensor's version as it was handed out, after a counter of what it is now: a tensor without
# elements that shares the tensor's own, which every operation in place advances. It holds neither
# memory nor a graph; a change through `.data` passes it by.
Version = tuple[Tensor, int]


class SpectralNormList(ParametrizationList):
    """As torch's, but it notices where the tensor that it handed out is changed in place.

    And where it holds one parametrization, on which there are no hooks, it neither searches for
    further ones nor goes through Module.__call__: at an access of a small weight each takes as long
    as a matrix-vector product.
    """

    watched: str | None = None  # the tensor's name, where changes of it are looked for
    _handed_out: Version | None = None

    def forward(self) -> Tensor:
        """The tensor, parametrized."""
        is_watched = self.watched is not None and not torch.compiler.is_compiling()
        if is_watched:
            handed_out = self._handed_out
            if handed_out is not None and handed_out[0]._version != handed_out[1]:
                self._forget()
                _warn(str(self.watched), self.original.shape)
        original = self._parameters.get("original")  # past Module's attribute lookup
        if original is not None and len(self._modules) == 1:
            only: Any = self._modules["0"]
            parametrize = only if _has_hooks(only) else only.forward
            parametrized: Tensor = parametrize(original)
        else:
            parametrized = super().forward()
        if is_watched:
            self.__dict__["_handed_out"] = _version_of(parametrized, self._handed_out)
        return parametrized

    def right_inverse(self, value: Tensor) -> None:
        """Set the tensor before parametrization: ``module.weight *= 2`` changes and assigns."""
        self._forget()
        super().right_inverse(value)

    def _forget(self) -> None:
        self.__dict__.pop("_handed_out", None)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._forget()  # it lies on the device that the tensor leaves
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        # What was handed out was handed out by this very module.
        return {key: value for key, value in self.__dict__.items() if key != "_handed_out"}


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
    )


def watches(module: nn.Module) -> bool:
    """Whether to notice changes of ``module``'s weights: not where its own forward makes them."""
    renormalizes = getattr(module, "max_norm", None) is not None  # Embedding and EmbeddingBag
    return not renormalizes and not isinstance(module, nn.RNNBase)  # cuDNN moves its weights


def _version_of(tensor: Tensor, last: Version | None) -> Version | None:
    """That of a plain tensor, None of one that has none; ``last`` is another, of its device."""
    if type(tensor) is not Tensor or torch.is_inference_mode_enabled():
        return None
    counter = tensor.detach()
    try:
        counter.data = tensor.new_empty(0) if last is None else last[0]
        return counter, counter._version
    except RuntimeError:  # a transform of torch.func refuses, or the tensor is one of inference
        return None


def _warn(name: str, shape: torch.Size) -> None:
    """Say that a change of the parameter ``name`` was lost, and how it is made."""
    warnings.warn(
        f"{name!r} of shape {tuple(shape)} was changed in place where it was handed out, normalized"
        f": the parameter is what it was. To change that, use "
        f"nn.init.xavier_uniform_(module.parametrizations.{name}.original) or the like, or assign "
        f"module.{name} = tensor",
        UserWarning,
        stacklevel=6,  # the access: through the list's forward, Module.__call__ and the property
    )
