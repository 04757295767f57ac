"""torch's hooks taken off, with a parameter in place of what they made of it."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..torch_internals.parametrize import LegacySpectralNorm, LegacyWeightNorm


def take_spectral_norm_off(module: nn.Module, hook: LegacySpectralNorm) -> None:
    """Give the module its parameter back, not normalized. torch's own removal bakes it in."""
    name = hook.name
    for hooks in (
        module._forward_pre_hooks,
        module._state_dict_hooks,
        module._load_state_dict_pre_hooks,
    ):
        for key, registered in list(hooks.items()):
            # The hooks of a state dict refer to the first; torch wraps the one that loads.
            unwrapped = getattr(registered, "hook", registered)
            owner = getattr(unwrapped, "fn", unwrapped)
            if isinstance(owner, LegacySpectralNorm) and owner.name == name:
                del hooks[key]
    parameter = module._parameters.pop(f"{name}_orig")
    for vector in (f"{name}_u", f"{name}_v"):
        del module._buffers[vector]
    module.__dict__.pop(name, None)
    module.register_parameter(name, parameter)


def take_weight_norm_off(module: nn.Module, hook: LegacyWeightNorm) -> None:
    """Give the module a parameter in place of g, v and what the hook makes of them."""
    for key, registered in list(module._forward_pre_hooks.items()):
        if registered is hook:
            del module._forward_pre_hooks[key]
    del module._parameters[f"{hook.name}_g"]
    v: Any = module._parameters.pop(f"{hook.name}_v")
    module.__dict__.pop(hook.name, None)
    module.register_parameter(hook.name, nn.Parameter(v.detach(), v.requires_grad))
