"""The weights of a checkpoint, whatever normalizes them, each with the matrix that it is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checkpoints.entries import check_alone, find_entries
from ..checkpoints.layouts import Entry
from ..checkpoints.missing_v import right_vector
from ..reference import as_matrix, weight_normalize

_ORIGINAL = re.compile(r"(?P<prefix>(?:.+\.)?)parametrizations\.(?P<name>[^.]+)\.original")
_VECTOR = re.compile(r".*\.\d+\._[uv]")
_OPTIMIZER = "param_groups"  # a dict with this key is an optimizer's, whose tensors are no weights


class Weight(NamedTuple):
    """A parameter of a checkpoint as a matrix of shape (M, N), in float64.

    ``norm`` says what is on it: ``"spectral"``, ``"weight"``, ``"none"``, or ``"other"``, of which
    a checkpoint does not say what it computes: ``normalized`` is None then. ``layout`` is that of
    its keys: ``"hook"``, ``"parametrization"`` or ``"plain"``.
    """

    name: str
    shape: tuple[int, ...]
    norm: str
    layout: str
    raw: Tensor
    normalized: Tensor | None


def weights_of(value: Any, transposed: Sequence[str] = (), path: str = "") -> Iterator[Weight]:
    """The weights of two dimensions or more in a checkpoint, in their order.

    Args:
        value: a state dict, or dicts and lists of them, however deep; optimizers are passed over.
        transposed: names or patterns of weights whose outputs lie in dimension 1, as those of
            transposed convolutions do. Where there are u and v, they say it by themselves.

    Raises:
        ValueError: a spectral norm is incomplete, or its vectors do not fit.
    """
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping) or _OPTIMIZER in value:
        return
    entries = _entries(value)
    taken = {key for entry in entries for key in (*entry.keys, entry.path)}
    for key, each in value.items():
        for entry in entries:
            if key == entry.keys[0]:
                yield _normalized(entry, value, path)
        if isinstance(each, Mapping | list | tuple):
            yield from weights_of(each, transposed, f"{path}{key}: ")
        elif isinstance(key, str) and key not in taken and _is_matrix(each):
            match = _ORIGINAL.fullmatch(key)
            name = path + (match["prefix"] + match["name"] if match else key)
            if match or "parametrizations." not in key:
                dim = int(any(fnmatchcase(name, pattern) for pattern in transposed))
                raw = as_matrix(each.detach(), dim).to(_wide(each))
                if match:
                    yield Weight(name, tuple(each.shape), "other", "parametrization", raw, None)
                else:
                    yield Weight(name, tuple(each.shape), "none", "plain", raw, raw)


def _entries(state: Mapping[Any, Any]) -> list[Entry]:
    """The spectral and weight norms of two dimensions or more.

    Those whose u and v are images, of a convolution that is no matrix, are left to be "other".
    """
    known = {
        key: value
        for key, value in state.items()
        if isinstance(key, str)
        and not (_VECTOR.fullmatch(key) and isinstance(value, Tensor) and value.ndim > 1)
    }
    found = [*find_entries(known), *find_entries(known, "weight_norm")]
    return [entry for entry in found if _is_matrix(state[entry.keys[entry.is_scaled]])]


def _normalized(entry: Entry, state: Mapping[str, Any], path: str) -> Weight:
    layout = "hook" if entry.is_legacy else "parametrization"
    if entry.is_scaled:
        g, v = (state[key].detach() for key in entry.keys)
        dim = _dim_of_norms(g)
        rows = g.flatten() if dim is not None else g.reshape(1)
        shaped = v if dim is not None else v.reshape(1, -1)
        scaled = weight_normalize(shaped, rows, dim=dim or 0).weight.reshape(v.shape)
        raw, used = (as_matrix(w, dim or 0).to(_wide(v)) for w in (v, scaled))
        return Weight(path + entry.path, tuple(v.shape), "weight", layout, raw, used)
    original = state[entry.keys[0]].detach()
    raw, sigma = _raw_and_sigma(entry, original, state)
    try:
        if not entry.is_legacy:
            check_alone(entry, state)
    except ValueError:  # more than one norm: what they make of it is not told
        return Weight(path + entry.path, tuple(original.shape), "other", layout, raw, None)
    used = raw if sigma == 0 else raw / sigma
    return Weight(path + entry.path, tuple(original.shape), "spectral", layout, raw, used)


def _raw_and_sigma(
    entry: Entry, original: Tensor, state: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """The matrix that u and v belong to, and sigma of them as evaluation has it.

    Of a square shape such as (8, 8, 3, 3), which does not say whether its convolution is
    transposed, it is the one with the larger sigma: to the other, the vectors are random ones.
    """
    wide = _wide(original)
    u = state[entry.keys[1]].to(wide)
    found = []
    for dim in range(original.ndim):
        if original.shape[dim] != u.numel():
            continue
        matrix = as_matrix(original, dim).to(wide)
        v = state.get(entry.keys[2])
        v = right_vector(original, u, dim) if v is None else v
        v = v.to(wide)
        if v.numel() == matrix.shape[1]:
            lengths = u.norm().clamp_min(1e-12) * v.norm().clamp_min(1e-12)
            found.append((matrix, torch.vdot(u, matrix @ v).real / lengths))
    return max(found, key=lambda pair: float(pair[1]))


def _dim_of_norms(g: Tensor) -> int | None:
    """The dimension whose rows have the norms ``g``; None of one norm of all."""
    wide = [dim for dim, size in enumerate(g.shape) if size != 1]
    if g.ndim == 0:
        return None
    return wide[0] if wide else 0


def _is_matrix(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and (value.is_floating_point() or value.is_complex())
        and not value.is_meta
        and value.ndim > 1
        and prod(value.shape) > 0
    )


def _wide(weight: Tensor) -> torch.dtype:
    return torch.complex128 if weight.is_complex() else torch.float64
