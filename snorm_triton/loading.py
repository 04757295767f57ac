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

from .checkpoint import legacy_keys, parametrized_keys, right_vector
from .parametrization import SpectralNormParametrization


def take_checkpoints(module: nn.Module) -> None:
    """Let ``module.load_state_dict`` take every layout that a spectral norm has."""
    if not _hooks(module):
        module.register_load_state_dict_pre_hook(before_load)


def forget_checkpoints(module: nn.Module) -> None:
    """Undo :func:`take_checkpoints`, unless a parameter of ours is left."""
    if next(_normalized(module), None) is None:
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
    for name, parametrizations, ours in _normalized(module):
        if not parametrizations.is_tensor or is_lazy(parametrizations.original):
            continue
        held = {parametrized_keys(prefix, name)[0]: parametrizations.original}
        for index, p in ours.items():
            if "_u" in p._buffers:
                _, u, v = parametrized_keys(prefix, name, index)
                held |= {u: p._u, v: p._v}
        legacy = _rename_legacy(state_dict, prefix, name, ours)
        misfits = [
            f"size mismatch for {legacy.get(key, key)}: the checkpoint has "
            f"{_describe(state_dict[key])}, the model {_describe(tensor)}; nothing of this "
            "spectral norm was loaded."
            for key, tensor in held.items()
            if key in state_dict and getattr(state_dict[key], "shape", None) != tensor.shape
        ]
        weight_sn = state_dict.pop(prefix + name, None) if legacy else None
        if misfits:
            error_msgs += misfits
            state_dict.update(held)  # what is loaded now is what was there
        elif legacy and len(held) > len(legacy):
            original, u, v = held
            (p,) = ours.values()
            state_dict[v] = right_vector(state_dict[original], state_dict[u], p.dim, weight_sn)


def _rename_legacy(
    state_dict: dict[str, Any],
    prefix: str,
    name: str,
    ours: dict[int, SpectralNormParametrization],
) -> dict[str, str]:
    """Give an entry of the legacy hook our keys; the new keys with the old ones."""
    old = legacy_keys(prefix, name)
    new = parametrized_keys(prefix, name, next(iter(ours)))
    # The hook is never stacked. Half of an entry is left for torch to name.
    if len(ours) > 1 or new[0] in state_dict or not {old[0], old[1]} <= state_dict.keys():
        return {}
    renamed = {n: o for n, o in zip(new, old, strict=True) if o in state_dict}
    for n, o in renamed.items():
        state_dict[n] = state_dict.pop(o)
    if "_u" not in next(iter(ours.values()))._buffers:  # a 1-D parameter: its norm needs neither
        for key in new[1:]:
            state_dict.pop(key, None)
    return renamed


def _normalized(
    module: nn.Module,
) -> Iterator[tuple[str, ParametrizationList, dict[int, SpectralNormParametrization]]]:
    """The normalized parameters of a module: name, parametrizations, and which of them are ours."""
    if not is_parametrized(module):
        return
    parametrizations: Any = module.parametrizations
    for name, each in parametrizations.items():
        ours = {i: p for i, p in enumerate(each) if isinstance(p, SpectralNormParametrization)}
        if ours:
            yield name, each, ours


def _hooks(module: nn.Module) -> list[int]:
    hooks = module._load_state_dict_pre_hooks.items()
    return [key for key, hook in hooks if getattr(hook, "hook", None) is before_load]


def _describe(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"shape {tuple(shape)}"
