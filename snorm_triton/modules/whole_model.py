"""A whole model's weights normalized together, at the start of its forward.

A forward pre-hook on the model prepares the normalized weight of every layer; an access during that
forward takes what was prepared for it. Anything else is computed at the access as always: outside
that forward, in another thread, or when the weight, the mode or the graph it should hang on is not
the one it was prepared for.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter
from torch.nn.utils.parametrize import ParametrizationList

from ..ops import recomputation
from ..parametrizations.base import Parametrization
from ..parametrizations.circumstances import Circumstances, is_running
from ..parametrizations.prepared import PreparedWeight
from ..parametrizations.prepared_round import PreparedMember
from ..parametrizations.traced_weight import TracedWeight
from ..torch_internals import functorch
from ..torch_internals.checkpoints import unseen
from ..torch_internals.parametrize import is_cached
from ..torch_internals.tracing import is_tracing
from .access import ConstrainedList, held_originals
from .standing import ATTRIBUTE, Standing
from .ways import Chosen, Member

_EAGER = (PreparedWeight, PreparedMember)


def attach(model: nn.Module, everywhere: bool) -> None:
    """Prepare the model's weights at each of its forwards: ``everywhere``, or only on GPUs."""
    prepare = _prepare_everywhere if everywhere else _prepare_on_gpus
    model.register_forward_pre_hook(prepare)
    model.register_forward_hook(_forget, always_call=True)


def detach(model: nn.Module) -> None:
    """Undo :func:`attach`, of submodules too."""
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key, hook in list(hooks.items()):
                if hook in (_prepare_everywhere, _prepare_on_gpus, _forget):
                    del hooks[key]
                    module._forward_hooks_always_called.pop(key, None)
        module.__dict__.pop(ATTRIBUTE, None)


# Hooks read the module that they are given: a closure would make a copy of the model prepare the
# weights of the original.
def _prepare_everywhere(model: nn.Module, args: Any) -> None:
    _prepare(model, None if torch.compiler.is_compiling() else sys._getframe(1), everywhere=True)


def _prepare_on_gpus(model: nn.Module, args: Any) -> None:
    _prepare(model, None if torch.compiler.is_compiling() else sys._getframe(1), everywhere=False)


def _forget(model: nn.Module, args: Any, output: Any) -> None:
    forward = None if torch.compiler.is_compiling() else sys._getframe(1)
    if forward is not None:
        standing: Standing | None = model.__dict__.get(ATTRIBUTE)
        if standing is not None and standing.forget(forward):
            return
    for _, _, parametrizations in _parametrized(model):
        for parametrization in parametrizations:
            prepared: Any = getattr(parametrization, "prepared", None)
            # What an outer forward prepared stays until that ends.
            if isinstance(prepared, TracedWeight):
                is_over = prepared.model is model
            elif isinstance(prepared, _EAGER) and None not in (forward, prepared.frame):
                is_over = prepared.frame is forward or not is_running(prepared.frame)
            else:
                continue
            if is_over:
                parametrization.__dict__["prepared"] = None
                # Nothing is ready where a forward is traced, and torch 2.11 could not trace this.
                if forward is not None and isinstance(parametrizations, ConstrainedList):
                    parametrizations.put_away()


def _prepare(model: nn.Module, forward: FrameType | None, everywhere: bool) -> None:
    """Prepare the weights for this forward: its frame, or None where torch.compile traces it."""
    if functorch.active() or (forward is not None and is_tracing()):
        return  # no node for many weights there
    checkpoints = recomputation.around_access()
    standing: Standing | None = None
    # A replica of DataParallel has the attributes of its original, this one among them.
    if forward is not None and not checkpoints and "_is_replica" not in model.__dict__:
        standing = model.__dict__.setdefault(ATTRIBUTE, Standing())
        if standing.prepare(model, forward):
            return
    with unseen() if checkpoints else nullcontext():
        kinds: dict[type[Parametrization], list[Chosen]] = {}
        served: list[Member] = []
        for each in _joined(model, everywhere):
            prepared = each[0].prepared
            if prepared is not None and prepared.serving(each[1], each[0]) is not None:
                served.append(each)
                continue
            each[0].prepared = None
            access = each[0].access(each[1], checkpoints)
            kinds.setdefault(type(each[0]), []).append((*each, access))
        for kind, members in kinds.items():
            outputs = kind.compute([access for *_, access in members])
            common = None if forward is None else Circumstances(members[0][1][0].device, forward)
            for (parametrization, originals, _, access), output in zip(
                members, outputs, strict=True
            ):
                parametrization.settle(access, output, checkpoints)
                if common is None:
                    traced = TracedWeight(originals, output, parametrization, model)
                    parametrization.prepared = traced
                elif parametrization.prepared is None:  # else it outlives this forward
                    parametrization.prepared = PreparedWeight(
                        originals, output[0], partial(_same, output), parametrization, common
                    )
    if standing is not None:
        standing.add(model, kinds, served)


def _same(output: Any) -> Any:
    return output


def _joined(model: nn.Module, everywhere: bool) -> Iterator[Member]:
    """What is prepared: parametrizations with the tensors that they are of, and their lists."""
    for module, name, parametrizations in _parametrized(model):
        # Stacked normalizations, sharded weights and the like are left to the access, and so is a
        # replica of DataParallel, which has its originals elsewhere.
        if len(parametrizations) != 1:
            continue
        parametrization = parametrizations[0]
        if isinstance(parametrizations, ConstrainedList):
            parametrizations.settle()
        originals = tuple(held_originals(parametrizations).values())
        if not isinstance(parametrization, Parametrization) or is_cached(module, name):
            continue
        if not originals or any(type(each) not in (Tensor, Parameter) for each in originals):
            continue
        if not everywhere and originals[0].device.type == "cpu":
            continue
        if parametrization.joins(originals):
            yield parametrization, originals, parametrizations


def _parametrized(model: nn.Module) -> Iterator[tuple[nn.Module, str, ParametrizationList]]:
    """Every parametrized tensor of the model, once: its module, its name, its parametrizations.

    Not those of a submodule that FSDP2 gathers on its own: it frees their weights as soon as its
    own backward has ended, when those of the whole model are not done with them.
    """
    seen = {model}
    waiting = [model]
    while waiting:
        module = waiting.pop()
        children = module._modules
        parametrizations = children.get("parametrizations")
        if parametrizations is not None:
            for name, each in parametrizations._modules.items():
                if isinstance(each, ParametrizationList):
                    yield module, name, each
        for name, child in children.items():
            if child is None or name == "parametrizations" or hasattr(type(child), "unshard"):
                continue
            if child not in seen:
                seen.add(child)
                waiting.append(child)
