"""A registration that waits for a module's first forward: for parameters, or for an input."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter, is_lazy
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.hooks import RemovableHandle

from .loading import before_load, take_checkpoints


class Waiting:
    """A forward pre-hook and a load hook in one.

    It runs after the mixin's own pre-hook has materialized the parameters, so the first output is
    normalized. It holds names and numbers alone, so that the module can be copied and pickled.
    """

    def __init__(self, name: str, options: dict[str, Any], wrapper: Any) -> None:
        self.name = name
        self.options = options
        self.wrapper = wrapper  # a class, to be copied and pickled by its name
        self.handles: tuple[RemovableHandle, ...] = ()
        self.attached = False

    def wait(self, module: nn.Module) -> None:
        take_checkpoints(module)  # not while attaching: torch iterates over the load hooks then
        self.handles = (
            module.register_forward_pre_hook(self, with_kwargs=True),
            module.register_load_state_dict_pre_hook(self.before_load),
        )

    def cancel(self) -> None:
        for handle in self.handles:
            handle.remove()

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        # Canceled last: where registering fails, every forward says so.
        if not self.attached:
            self.attach(module, (*args, *kwargs.values()))
        self.cancel()

    def attach(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Register, given the inputs; in whatever mode and whatever checkpoint this is."""
        is_parameter = isinstance(module._parameters.get(self.name), nn.Parameter)
        if not is_parameter and not is_parametrized(module, self.name):
            raise RuntimeError(
                f"the first forward of a {type(module).__name__} whose {self.name!r} waits to be "
                "normalized must be one of the module itself: not of a replica, nor by "
                "torch.func.functional_call"
            )
        options = self.wrapper.completed(self.options, module, args)
        with torch.inference_mode(False), torch.no_grad():
            self.wrapper(module, self.name, **options).attach()
        self.attached = True

    def before_load(
        self, module: nn.Module, state_dict: dict[str, Any], prefix: str, *args: Any
    ) -> None:
        """Register before a checkpoint of a normalized module is loaded.

        The hooks stay until the first forward: torch is iterating over them here.
        """
        original = self.wrapper.saved_weight(state_dict, prefix, self.name)
        inputs = self.wrapper.saved_input(state_dict, prefix, self.name)
        is_complete = self.wrapper.is_complete(self.options, inputs)
        if self.attached or original is None or is_lazy(original) or not is_complete:
            return
        tensor = module._parameters.get(self.name)
        if isinstance(tensor, UninitializedParameter):
            with torch.no_grad():
                tensor.materialize(original.shape)
                tensor.copy_(original)
            if isinstance(module, nn.Linear) and self.name == "weight":
                # LazyLinear would read the weight for it, and so iterate.
                module.in_features = original.shape[1]
        self.attach(module, inputs)
        before_load(module, state_dict, prefix, *args)


def waiting(
    module: nn.Module, name: str | None = None, wrapper: type | None = None
) -> list[Waiting]:
    """The registrations that wait in a module, those of one parameter or by one kind if given."""
    hooks = module._forward_pre_hooks.values()
    found = [hook for hook in hooks if isinstance(hook, Waiting) and not hook.attached]
    return [
        each
        for each in found
        if name in (None, each.name) and (wrapper is None or issubclass(each.wrapper, wrapper))
    ]
