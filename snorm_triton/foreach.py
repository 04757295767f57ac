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
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter
from torch.nn.utils import parametrize
from torch.nn.utils.parametrize import ParametrizationList

from . import recomputation, streams, transforms, updates
from .functional import normalize_together
from .normalization import SpectralNormalized
from .parametrization import SpectralNormParametrization
from .recomputation import State
from .singular_vectors import version


class TracedWeight:
    """A normalized weight of a forward that torch.compile traces, where nothing else can change."""

    def __init__(
        self,
        weight: Tensor,
        weight_sn: Tensor,
        parametrization: SpectralNormParametrization,
        model: nn.Module,
    ) -> None:
        self.weight = weight
        self.weight_sn = weight_sn
        self.model = model
        self.state = None
        self.is_training = parametrization.training
        self.with_grad = torch.is_grad_enabled()

    def serves(self, weight: Tensor, parametrization: SpectralNormParametrization) -> bool:
        """Whether an access to ``weight`` here gets this."""
        return (
            torch.compiler.is_compiling()
            and weight is self.weight
            and self.weight_sn.dtype == parametrization.output_dtype(weight)
            and parametrization.training == self.is_training
            and (self.with_grad or not torch.is_grad_enabled())
        )

    def hand_over(self) -> Tensor:
        """The normalized weight: the compiler orders what is done with it."""
        return self.weight_sn


class PreparedWeight:
    """A normalized weight, and what must still be so for it to be handed out."""

    def __init__(
        self,
        weight: Tensor,
        normalized: SpectralNormalized,
        parametrization: SpectralNormParametrization,
        forward: FrameType,
    ) -> None:
        self.weight = weight
        self.weight_sn = normalized.weight_sn
        self.version = version(normalized.weight_sn)
        self.state = State(normalized.u, normalized.v, normalized.sigma.detach())
        self.stream = streams.current(weight.device)
        self.is_captured = streams.is_capturing(weight.device)
        self.forward = forward
        self.conditions = self._conditions(weight, parametrization)
        self.with_grad = torch.is_grad_enabled()

    @staticmethod
    def _conditions(
        weight: Tensor, parametrization: SpectralNormParametrization
    ) -> tuple[object, ...]:
        return (
            version(weight),
            weight.data_ptr(),
            weight.requires_grad,
            parametrization.training,
            updates.steps,
            torch._C._current_graph_task_id(),  # a recomputation inside a backward is no access
        )

    def serves(self, weight: Tensor, parametrization: SpectralNormParametrization) -> bool:
        """Whether an access to ``weight`` here and now gets this."""
        return (
            not torch.compiler.is_compiling()
            and weight is self.weight
            and version(self.weight_sn) == self.version
            and self.weight_sn.dtype == parametrization.output_dtype(weight)
            and (self.with_grad or not torch.is_grad_enabled())
            and self._conditions(weight, parametrization) == self.conditions
            and _is_running(self.forward)
            # A graph cannot wait for what is not in it.
            and streams.is_capturing(weight.device) == self.is_captured
        )

    def hand_over(self) -> Tensor:
        """The normalized weight, for whatever the current stream does with it."""
        if self.stream is not None:
            streams.hand_over(self.stream, self.weight_sn, *self.state)
        return self.weight_sn


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


# Hooks read the module that they are given: a closure would make a copy of the model prepare the
# weights of the original.
def _prepare_everywhere(model: nn.Module, args: Any) -> None:
    _prepare(model, None if torch.compiler.is_compiling() else sys._getframe(1), everywhere=True)


def _prepare_on_gpus(model: nn.Module, args: Any) -> None:
    _prepare(model, None if torch.compiler.is_compiling() else sys._getframe(1), everywhere=False)


def _forget(model: nn.Module, args: Any, output: Any) -> None:
    forward = None if torch.compiler.is_compiling() else sys._getframe(1)
    for _, _, parametrizations in _parametrized(model):
        for parametrization in parametrizations:
            if not isinstance(parametrization, SpectralNormParametrization):
                continue
            prepared = parametrization.prepared
            # What an outer forward prepared stays until that ends.
            if isinstance(prepared, TracedWeight):
                is_over = prepared.model is model
            elif isinstance(prepared, PreparedWeight) and forward is not None:
                is_over = prepared.forward is forward or not _is_running(prepared.forward)
            else:
                continue
            if is_over:
                parametrization.prepared = None


def _prepare(model: nn.Module, forward: FrameType | None, everywhere: bool) -> None:
    """Prepare the weights for this forward: its frame, or None where torch.compile traces it."""
    if transforms.active() or (forward is not None and torch._C._is_tracing()):
        return  # no node for many weights there
    chosen = []
    for module, name, parametrizations in _parametrized(model):
        # Stacked normalizations, sharded weights and the like are left to the access.
        if len(parametrizations) != 1 or not parametrizations.is_tensor:
            continue
        weight = parametrizations.original
        if type(weight) not in (Tensor, Parameter):
            continue
        parametrization = parametrizations[0]
        if not isinstance(parametrization, SpectralNormParametrization):
            continue
        if weight.ndim < 2 or weight.is_complex():
            continue
        if not everywhere and weight.device.type == "cpu":
            continue
        if _is_cached(module, name):
            continue
        prepared = parametrization.prepared
        if prepared is None or not prepared.serves(weight, parametrization):
            chosen.append((weight, parametrization))
    is_compiling = forward is None
    may_be_replay = not is_compiling and recomputation.is_possible()
    with recomputation.unseen() if may_be_replay else nullcontext():
        requests = [
            parametrization.request(weight, is_compiling, may_be_replay)
            for weight, parametrization in chosen
        ]
        outputs = normalize_together(requests)
    for (weight, parametrization), request, normalized in zip(
        chosen, requests, outputs, strict=True
    ):
        if forward is None:
            weight_sn = normalized.weight_sn
            parametrization.prepared = TracedWeight(weight, weight_sn, parametrization, model)
        else:
            parametrization.took(request, normalized, may_be_replay)
            parametrization.prepared = PreparedWeight(weight, normalized, parametrization, forward)


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


def _is_cached(module: nn.Module, name: str) -> bool:
    """Whether ``parametrize.cached()`` holds the tensor, and no access will compute it."""
    return bool(parametrize._cache_enabled) and (id(module), name) in parametrize._cache


def _is_running(frame: FrameType | None) -> bool:
    """Whether ``frame`` is among the callers: not so in another thread, nor once it has ended.

    A hook is not told of every end: KeyboardInterrupt passes it by.
    """
    caller: FrameType | None = sys._getframe(1)
    while caller is not None and caller is not frame:
        caller = caller.f_back
    return caller is not None
