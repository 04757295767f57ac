"""The list of parametrizations of a tensor, which hands the tensor out.

It notices what is done in place to what it handed out, which is done to a temporary: before the
first forward that becomes the tensor before parametrization, afterwards it is lost, and warned of.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from ..ops import streams
from ..parametrizations import updates
from ..parametrizations.base import Parametrization, evaluating
from ..parametrizations.singular_vectors import WARM_UP_ITERATIONS
from ..torch_internals import functorch
from ..torch_internals.parametrize import is_caching

# A tensor's version as it was handed out, after a counter of what it is now: a tensor without
# elements that shares the tensor's own, which every operation in place advances. It holds neither
# memory nor a graph; a change through `.data` passes it by.
Version = tuple[Tensor, int]


class ConstrainedList(ParametrizationList):
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
                _warn(self)
        parametrized = self._parametrized()
        if is_watched:
            self.__dict__["_handed_out"] = _version_of(parametrized, self._handed_out)
        return parametrized

    def _parametrized(self) -> Tensor:
        original = self._parameters.get("original")  # past Module's attribute lookup
        if original is not None and len(self._modules) == 1:
            only: Any = self._modules["0"]
            parametrize = only if _has_hooks(only) else only.forward
            return parametrize(original)  # type: ignore[no-any-return]
        return super().forward()

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
        return {key: value for key, value in self.__dict__.items() if key not in _OWN}


class FreshList(ConstrainedList):
    """Before the module's first forward: what is written into the tensor becomes the original.

    That is how code written for :func:`torch.nn.utils.spectral_norm` initializes a model, by
    ``nn.init`` or through ``.data``: the weight that its hook hands out is the original until then.
    Becomes a :class:`ConstrainedList` at that forward, and nothing of this remains.
    """

    _shown: tuple[Tensor, Tensor] | None = None  # what was handed out, and a copy of it
    _born = 0  # steps of optimizers until then

    def forward(self) -> Tensor:
        """The tensor, parametrized."""
        if torch.compiler.is_compiling():
            _settle(self)
            return super().forward()
        self.adopt()
        if self._is_over():
            self.__class__ = ConstrainedList  # type: ignore[assignment]
            return self.forward()
        parametrized = self._parametrized()
        if type(parametrized) is Tensor and not parametrized.is_meta and not functorch.active():
            with torch.no_grad():
                self.__dict__["_shown"] = parametrized, parametrized.clone()
        return parametrized

    @torch.no_grad()
    def adopt(self) -> None:
        """Take over what was written into the tensor since it was handed out."""
        shown = self.__dict__.pop("_shown", None)
        if shown is None:
            return
        now, before = shown[0].detach(), shown[1]
        is_new = (now != before) & ~(now.isnan() & before.isnan())
        if not is_new.any():
            return
        # Of a tensor written in part the rest is the original's; all of it may hold by chance some
        # value that it had.
        if 2 * is_new.sum() <= is_new.numel():
            now = torch.where(is_new, now, self._original())
        super().right_inverse(now.clone())
        refresh_list(self, WARM_UP_ITERATIONS)

    def _original(self) -> Tensor:
        with evaluating():
            return self.original if self.is_tensor else self._parametrized()

    def _is_over(self) -> bool:
        return (
            updates.steps != self._born
            or _is_in_forward(self)
            or any(streams.is_capturing(tensor.device) for tensor in self.parameters())
        )

    def right_inverse(self, value: Tensor) -> None:
        """Set the tensor before parametrization."""
        self.__dict__.pop("_shown", None)
        super().right_inverse(value)

    def __getattr__(self, name: str) -> Any:
        if name == "original":
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


_OWN = ("_handed_out", "_shown")


def constrain(module: nn.Module, name: str) -> None:
    """Let the list of a tensor that ours is registered on be one of these, and the module fast."""
    all_lists: Any = module.parametrizations
    parametrizations = all_lists[name]
    if not isinstance(parametrizations, ConstrainedList):
        parametrizations.__class__ = FreshList
        parametrizations._born = updates.steps
    if _watches(module) and parametrizations.is_tensor:
        parametrizations.watched = name
    make_fast(type(module), name)
    read_through(module, name)


def refresh_list(parametrizations: ParametrizationList, n_power_iterations: int) -> None:
    """Bring the state of each in line with the tensor as it is now, whatever the mode."""
    tensors = parametrizations._parameters or parametrizations._buffers
    inputs: list[Any] = list(tensors.values())
    with evaluating(), torch.no_grad():
        for parametrization in parametrizations:
            if isinstance(parametrization, Parametrization):
                parametrization.refresh(inputs[0], n_power_iterations)
            if parametrization is not parametrizations[-1]:
                inputs = [parametrization(*inputs)]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _settle(parametrizations: FreshList) -> None:
    """While compiling: adopt now, for the program reads the original."""
    parametrizations.adopt()


def make_fast(cls: type[nn.Module], name: str) -> None:
    """Read the tensor ``name`` past Module's attribute lookup and Module.__call__.

    On the class that torch has made for the one module.
    """
    torchs = vars(cls)[name]
    if getattr(torchs.fget, "is_ours", False):
        return

    def get(module: nn.Module) -> Any:
        parametrizations: Any = module._modules["parametrizations"]
        each = parametrizations._modules[name]
        if is_caching() or _has_hooks(each) or type(each) is ParametrizationList:
            return torchs.fget(module)
        return each.forward()

    get.is_ours = True  # type: ignore[attr-defined]
    setattr(cls, name, property(get, torchs.fset))


def read_through(module: nn.Module, name: str) -> None:
    """Let what torch's hook calls ``weight_orig``, ``weight_u`` and the like be read; no state."""
    all_lists: Any = module.parametrizations
    aliases = {"_orig": "original"}
    for position, each in enumerate(all_lists[name]):
        if isinstance(each, Parametrization):
            aliases |= {alias: f"{position}.{key}" for alias, key in each.aliases.items()}
    cls = type(module)
    for alias, path in aliases.items():
        if not hasattr(module, name + alias):
            setattr(cls, name + alias, property(partial(_read, name=name, path=path)))


def _read(module: nn.Module, name: str, path: str) -> Tensor:
    all_lists: Any = module.parametrizations
    if name not in all_lists:
        raise AttributeError(f"{type(module).__name__} has no parametrization of {name!r} any more")
    position, _, key = path.rpartition(".")
    parametrizations = all_lists[name]
    holder = parametrizations[int(position)] if position else parametrizations
    return getattr(holder, key)  # type: ignore[no-any-return]


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
    )


def _watches(module: nn.Module) -> bool:
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


_CALL = nn.Module.__call__.__code__


def _calls(frame: FrameType | None) -> list[nn.Module]:
    """The modules that are being called, from the innermost."""
    found = []
    while frame is not None:
        if frame.f_code is _CALL:
            found.append(frame.f_locals[_CALL.co_varnames[0]])
        frame = frame.f_back
    return found


def _is_in_forward(parametrizations: ParametrizationList) -> bool:
    own = [parametrizations, *parametrizations]
    return any(all(module is not each for each in own) for module in _calls(sys._getframe(1)))


def _warn(parametrizations: ConstrainedList) -> None:
    """Say that a change of what was handed out was lost, and how it is made: at the user's line."""
    frame: FrameType | None = sys._getframe(1)
    level = 2
    while frame is not None and _is_inside(frame):
        frame, level = frame.f_back, level + 1
    name = parametrizations.watched
    warnings.warn(
        f"{_path_of(parametrizations)} was changed in place where it was handed out, normalized: "
        f"the parameter is what it was. To change that, assign module.{name} = tensor, or change "
        f"module.parametrizations.{name}.original under torch.no_grad()",
        UserWarning,
        stacklevel=level - 1,
    )


_INSIDE = (str(Path(torch.__file__).parent), str(Path(__file__).parent.parent))


def _is_inside(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_INSIDE)


def _path_of(parametrizations: ConstrainedList) -> str:
    """The tensor's name in the outermost module that is being called, or as good as is known."""
    for model in reversed(_calls(sys._getframe(1))):
        for path, module in model.named_modules():
            if module is parametrizations:
                return repr(path.replace("parametrizations.", ""))
    return f"{parametrizations.watched!r} of shape {tuple(parametrizations.original.shape)}"
