"""What a normalized module does with a state dict before torch loads it.

torch copies each tensor that fits and raises afterwards, so that a checkpoint with one wrong u
would leave the weight and v behind. Here a spectral norm is loaded whole or not at all; one saved
by torch's legacy hook is brought to our keys first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from ..parametrizations.base import Parametrization
from .access import originals_of


def take_checkpoints(module: nn.Module) -> None:
    """Let ``module.load_state_dict`` take every layout that a spectral norm has."""
    if not _hooks(module):
        module.register_load_state_dict_pre_hook(before_load)


def forget_checkpoints(module: nn.Module) -> None:
    """Undo :func:`take_checkpoints`, unless a parameter of ours is left."""
    if next(constrained(module), None) is None:
        for key in _hooks(module):
            del module._load_state_dict_pre_hooks[key]


def before_load(
    module: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: dict[str, Any],
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """The load hook: it reads the module that it is given, so that copies can have it too."""
    for name, parametrizations, ours in constrained(module):
        originals = originals_of(parametrizations)
        if any(map(is_lazy, originals.values())):
            continue
        path = f"{prefix}parametrizations.{name}"
        held = {f"{path}.{key}": tensor for key, tensor in originals.items()}
        older: dict[str, str] = {}
        for position, each in ours.items():
            held |= {f"{path}.{position}.{key}": value for key, value in each.saved().items()}
            # torch's hooks were never stacked.
            if len(ours) == 1 and (parametrizations.is_tensor or len(parametrizations) == 1):
                older = each.upgrade(state_dict, prefix, name, f"{path}.{position}")
        misfits = [
            f"size mismatch for {older.get(key, key)}: the checkpoint has "
            f"{_describe(state_dict[key])}, the model {_describe(tensor)}; nothing of this "
            "parametrization was loaded."
            for key, tensor in held.items()
            if key in state_dict and getattr(state_dict[key], "shape", None) != tensor.shape
        ]
        computed = state_dict.pop(prefix + name, None) if older else None
        if misfits:
            error_msgs += misfits
            state_dict.update(held)  # what is loaded now is what was there
        elif older:
            for position, each in ours.items():
                each.complete(state_dict, f"{path}.{position}", computed)


def constrained(
    module: nn.Module,
) -> Iterator[tuple[str, ParametrizationList, dict[int, Parametrization]]]:
    """The parameters that ours are on: name, parametrizations, and which of them are ours."""
    if not is_parametrized(module):
        return
    parametrizations: Any = module.parametrizations
    for name, each in parametrizations.items():
        ours = {i: p for i, p in enumerate(each) if isinstance(p, Parametrization)}
        if ours:
            yield name, each, ours


def _hooks(module: nn.Module) -> list[int]:
    hooks = module._load_state_dict_pre_hooks.items()
    return [key for key, hook in hooks if getattr(hook, "hook", None) is before_load]


def _describe(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"shape {tuple(shape)}"
