"""Finds the norms of a state dict, and checks that each is whole."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any, NoReturn

from torch import Tensor

from ..functional import matrix_shape
from .layouts import NORMS, Entry, legacy_keys
from .metadata import declared_parameters

_PARAMETRIZED = re.compile(r"(?P<prefix>(?:.+\.)?)parametrizations\.(?P<name>[^.]+)\.(?P<rest>.+)")
_VECTOR = re.compile(r"\d+\._[uv]")


def find_entries(state_dict: Mapping[str, Any], norm: str = NORMS[0]) -> list[Entry]:
    """The norms of a state dict; ValueError where a spectral norm is incomplete or does not fit."""
    if norm == "weight_norm":
        return list(_find_scaled(state_dict))
    entries = [*_find_legacy(state_dict), *_find_parametrized(state_dict)]
    for entry in entries:
        # Not on top of another parametrization: no entry has the shape of its output.
        if entry.keys[0] in state_dict and entry.keys[1] in state_dict:
            _check_shapes([key for key in entry.keys if key in state_dict], state_dict)
    return entries


def check_alone(entry: Entry, state_dict: Mapping[str, Any]) -> None:
    """Raise ValueError where a parametrized parameter has more than one norm."""
    below = f"{entry.prefix}parametrizations.{entry.name}."
    for key in state_dict:
        if isinstance(key, str) and key.startswith(below) and key not in entry.keys:
            raise ValueError(
                f"{key} has no place in the legacy layout, which holds one norm and nothing else "
                f"on {entry.path}"
            )


def _find_legacy(state_dict: Mapping[str, Any]) -> Iterator[Entry]:
    declared = dict.fromkeys(declared_parameters(getattr(state_dict, "_metadata", None) or {}))
    candidates = [
        key.removesuffix(suffix)
        for key in state_dict
        if isinstance(key, str)
        for suffix in ("_orig", "_u")
        if key.endswith(suffix)
    ]
    for path in dict.fromkeys([*candidates, *declared]):
        prefix, dot, name = path.rpartition(".")
        keys = legacy_keys(prefix + dot, name)
        original, u, v = (key in state_dict for key in keys)
        # Other things have such names: pruning has weight_orig, too.
        if path in declared or (original and (u or v)) or _is_vector_of_a_weight(keys, state_dict):
            for key, beside in ((keys[0], keys[1]), (keys[1], keys[0])):
                if key not in state_dict:
                    _raise_incomplete(key, beside if beside in state_dict else "")
            yield Entry(prefix + dot, name, is_legacy=True)


def _is_vector_of_a_weight(keys: tuple[str, ...], state_dict: Mapping[str, Any]) -> bool:
    u = state_dict.get(keys[1])
    return isinstance(u, Tensor) and u.ndim == 1 and "weight" in keys[1].rpartition(".")[2]


def _find_parametrized(state_dict: Mapping[str, Any]) -> Iterator[Entry]:
    for (prefix, name), rests in _parametrized(state_dict).items():
        indices = dict.fromkeys(rest.partition(".")[0] for rest in rests if _VECTOR.fullmatch(rest))
        path = f"{prefix}parametrizations.{name}"
        for index in indices:
            for vector, other in ((f"{index}._u", f"{index}._v"), (f"{index}._v", f"{index}._u")):
                if vector not in rests:
                    _raise_incomplete(f"{path}.{vector}", f"{path}.{other}")
        if indices and not any(rest.startswith("original") for rest in rests):
            _raise_incomplete(f"{path}.original")
        if indices:
            yield Entry(prefix, name, is_legacy=False)


def _find_scaled(state_dict: Mapping[str, Any]) -> Iterator[Entry]:
    """Weight norms: other things may have such names, but no g and v of such shapes."""
    for key in state_dict:
        if not isinstance(key, str):
            continue
        match = _PARAMETRIZED.fullmatch(key)
        if match is not None and match["rest"] == "original0":
            entry = Entry(match["prefix"], match["name"], is_legacy=False, is_scaled=True)
        elif key.endswith("_g"):
            prefix, dot, name = key.removesuffix("_g").rpartition(".")
            entry = Entry(prefix + dot, name, is_legacy=True, is_scaled=True)
        else:
            continue
        g, v = (state_dict.get(each) for each in entry.keys)
        if isinstance(g, Tensor) and isinstance(v, Tensor) and _are_g_and_v(g, v):
            yield entry


def _are_g_and_v(g: Tensor, v: Tensor) -> bool:
    sizes = zip(g.shape, v.shape, strict=False)
    wide = [g_size for g_size, v_size in sizes if g_size != 1 and g_size == v_size]
    is_broadcast = g.ndim == v.ndim and prod(g.shape) == prod(wide) and len(wide) <= 1
    return v.ndim > 0 and (g.ndim == 0 or is_broadcast)


def _parametrized(state_dict: Mapping[str, Any]) -> dict[tuple[str, str], list[str]]:
    """The keys below each parametrized tensor, by its module's prefix and its name."""
    below: dict[tuple[str, str], list[str]] = {}
    for key in state_dict:
        match = _PARAMETRIZED.fullmatch(key) if isinstance(key, str) else None
        if match is not None:
            below.setdefault((match["prefix"], match["name"]), []).append(match["rest"])
    return below


def _raise_incomplete(key: str, beside: str = "") -> NoReturn:
    beside = beside and f" beside {beside}"
    raise ValueError(f"{key} is missing{beside}: the spectral norm is incomplete")


def _check_shapes(keys: list[str], state_dict: Mapping[str, Any]) -> None:
    for key in keys:
        if not isinstance(state_dict[key], Tensor):
            raise ValueError(f"{key} must be a tensor, got {type(state_dict[key]).__name__}")
    original, *vectors = (state_dict[key] for key in keys)
    shape = tuple(original.shape)
    axes = [d for d in range(original.ndim) if (shape[d],) == tuple(vectors[0].shape)]
    if not axes:
        raise ValueError(
            f"{keys[1]} has shape {tuple(vectors[0].shape)}, which is no dimension of {keys[0]} of "
            f"shape {shape}"
        )
    columns = matrix_shape(original, axes[0])[1]
    if len(vectors) > 1 and vectors[1].shape != (columns,):
        raise ValueError(
            f"{keys[2]} has shape {tuple(vectors[1].shape)}; it must be ({columns},) for {keys[0]} "
            f"of shape {shape}"
        )
