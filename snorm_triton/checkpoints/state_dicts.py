"""A state dict with its spectral norms in another layout."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from .entries import check_alone, find_entries
from .layouts import LAYOUTS, NORMS, Entry, Layout, Norm
from .metadata import convert_metadata
from .missing_v import missing_v


def convert_state_dict(
    state_dict: Mapping[str, Any],
    to: Layout = "ours",
    *,
    dims: Mapping[str, int] | None = None,
    norm: Norm = "spectral_norm",
) -> OrderedDict[str, Any]:
    """A state dict with its norms in another layout, for code that compares keys itself.

    A module normalized by us does not need it: its ``load_state_dict`` takes all three layouts.
    Every other entry stays as it is, in its place. Tensors are not copied, and the argument is not
    changed; there and back gives the same entries.

    Of a 1-D parameter the legacy hook saves u and v, the parametrization neither: they are left
    out. On the way back such a parameter keeps its layout, since nothing in a state dict says that
    it is normalized.

    Args:
        state_dict: of a model or a module, with or without the ``_metadata`` that ``state_dict()``
            attaches.
        to: ``"ours"`` or ``"torch"``, which have the same keys, or ``"legacy"``.
        dims: the dimension of the outputs by qualified parameter name, ``{"0.weight": 1}``. Needed
            only where a legacy checkpoint lacks v and a shape such as (8, 8, 3, 3) leaves open
            whether its convolution is transposed.
        norm: ``"spectral_norm"`` or ``"weight_norm"``: which to convert; others stay as they are.

    Returns:
        A new dict; it has ``_metadata`` where the argument has.

    Raises:
        ValueError: ``to`` is no layout, or ``norm`` no norm; an entry, which is named, is
            incomplete, has a shape that does not fit the others, lacks a v that cannot be computed,
            is to become legacy with more on the parameter than one norm, or would replace another;
            ``dims`` names no spectral norm, or a dimension of another size than u.
        TypeError: ``state_dict`` is no mapping.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from snorm_triton import convert_state_dict
        >>> layer = torch.nn.utils.spectral_norm(nn.Linear(3, 2))
        >>> list(convert_state_dict(layer.state_dict()))[1:]
        ['parametrizations.weight.original', 'parametrizations.weight.0._u', \
'parametrizations.weight.0._v']
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict must be a mapping, got {type(state_dict).__name__}")
    if to not in LAYOUTS:
        raise ValueError(f"to must be one of {', '.join(LAYOUTS)}, got {to!r}")
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
    entries = find_entries(state_dict, norm)
    for path in dims or ():
        if path not in [entry.path for entry in entries if not entry.is_scaled]:
            raise ValueError(f"dims: no spectral norm on {path!r}")
    entries = [entry for entry in entries if entry.is_legacy != (to == "legacy")]
    replaced: dict[str, dict[str, Any]] = {}
    for entry in entries:
        replaced |= _replacements(entry, state_dict, dims or {})
    converted: OrderedDict[str, Any] = OrderedDict()
    for key, value in state_dict.items():
        converted.update(replaced.get(key, {key: value}))
    metadata = getattr(state_dict, "_metadata", None)
    if metadata is not None:
        converted._metadata = convert_metadata(metadata, entries)  # type: ignore[attr-defined]
    return converted


def _replacements(
    entry: Entry, state_dict: Mapping[str, Any], dims: Mapping[str, int]
) -> dict[str, dict[str, Any]]:
    """By each key of an entry, what stands in its place in the other layout."""
    old, new = entry.keys, entry.converted_keys
    for key in new:
        if key in state_dict:
            raise ValueError(f"{key} is there already: {old[0]} would replace it")
    if not entry.is_legacy:
        check_alone(entry, state_dict)
    replaced = {
        old_key: {new_key: state_dict[old_key]}
        for old_key, new_key in zip(old, new, strict=True)
        if old_key in state_dict
    }
    if entry.is_legacy and not entry.is_scaled:
        replaced[entry.path] = {}  # in torch before 1.0, the weight as it was last normalized
        if state_dict[old[0]].ndim == 1:
            replaced |= {key: {} for key in old[1:]}
        elif old[2] not in state_dict:
            replaced[old[1]][new[2]] = missing_v(entry, state_dict, dims)
    return replaced
