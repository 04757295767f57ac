"""State dicts of a spectral norm in the layouts that PyTorch has, one turned into another.

===============  ==================================================================
parametrization  ``parametrizations.weight.original``, ``.weight.0._u``, ``.weight.0._v``
legacy hook      ``weight_orig``, ``weight_u``, ``weight_v``
===============  ==================================================================

The first is ours and that of :func:`torch.nn.utils.parametrizations.spectral_norm`, the second that
of :func:`torch.nn.utils.spectral_norm`. Both read a weight as the same matrix.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .functional import matrix_shape, state_dtype

LAYOUTS = ("ours", "torch", "legacy")
LEGACY_VERSION = 1  # of torch.nn.utils.spectral_norm, as it writes it into the metadata

_PARAMETRIZED = re.compile(r"(?P<prefix>(?:.+\.)?)parametrizations\.(?P<name>[^.]+)\.(?P<rest>.+)")
_VECTOR = re.compile(r"\d+\._[uv]")


class Entry(NamedTuple):
    """A normalized parameter of a state dict: its module's prefix, such as ``"0."``, and its name.

    ``has_v`` is False where a legacy entry has no v: torch before 1.0 did not save it.
    """

    prefix: str
    name: str
    is_legacy: bool
    has_v: bool = True

    @property
    def legacy_keys(self) -> tuple[str, str, str]:
        return legacy_keys(self.prefix, self.name)

    @property
    def parametrized_keys(self) -> tuple[str, str, str]:
        return parametrized_keys(self.prefix, self.name)


def legacy_keys(prefix: str, name: str) -> tuple[str, str, str]:
    """Those of the weight, u and v under the legacy hook."""
    return f"{prefix}{name}_orig", f"{prefix}{name}_u", f"{prefix}{name}_v"


def parametrized_keys(prefix: str, name: str, index: int = 0) -> tuple[str, str, str]:
    """Those of the weight, u and v under the parametrization at ``index`` of its list."""
    path = f"{prefix}parametrizations.{name}"
    return f"{path}.original", f"{path}.{index}._u", f"{path}.{index}._v"


def convert_state_dict(
    state_dict: Mapping[str, Any], to: str = "ours", *, dims: Mapping[str, int] | None = None
) -> OrderedDict[str, Any]:
    """A state dict with its spectral norms in another layout, for code that compares keys itself.

    A module normalized by us needs it not: its ``load_state_dict`` takes all three layouts. Every
    other entry stays as it is, in its place. Tensors are not copied, and the argument is not
    changed; there and back gives the same entries.

    Of a 1-D parameter the legacy hook keeps u and v and the parametrization neither. They are left
    out on the way to it; on the way back the parameter stays in its layout, for nothing in a state
    dict says that it is a spectral norm's.

    Args:
        state_dict: that of a whole model or of a module, with or without the ``_metadata`` that
            ``state_dict()`` attaches.
        to: ``"ours"`` or ``"torch"``, which have the same keys, or ``"legacy"``.
        dims: the dimension of the outputs by qualified parameter name, ``{"0.weight": 1}``. Needed
            only where a legacy checkpoint lacks v and a shape such as (8, 8, 3, 3) leaves open
            whether its convolution is transposed.

    Returns:
        A new dict; it has ``_metadata`` where the argument has.

    Raises:
        ValueError: ``to`` is no layout, or an entry, which is named, is incomplete, has a shape
            that does not fit the others, lacks v with its dimension open, is to become legacy with
            more on the parameter than one spectral norm, or would replace another; ``dims`` names
            none, or a dimension of another size than u.
        TypeError: ``state_dict`` is no mapping.

    Example:
        >>> layer = torch.nn.utils.spectral_norm(nn.Linear(3, 2))
        >>> list(convert_state_dict(layer.state_dict()))[1:]
        ['parametrizations.weight.original', 'parametrizations.weight.0._u', \
'parametrizations.weight.0._v']
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict must be a mapping, got {type(state_dict).__name__}")
    if to not in LAYOUTS:
        raise ValueError(f"to must be one of {', '.join(LAYOUTS)}, got {to!r}")
    entries = find_entries(state_dict)
    for path in dims or ():
        if path not in [entry.prefix + entry.name for entry in entries]:
            raise ValueError(f"dims: no spectral norm on {path!r}")
    entries = [entry for entry in entries if entry.is_legacy != (to == "legacy")]
    renamed: dict[str, str] = {}
    left_out: set[str] = set()
    added: dict[str, tuple[str, Tensor]] = {}  # after a key: another, and its value
    for entry in entries:
        old, new = entry.parametrized_keys, entry.legacy_keys
        if entry.is_legacy:
            old, new = new, old
            left_out.add(entry.prefix + entry.name)
        else:
            _check_alone(entry, state_dict)
        for key in new:
            if key in state_dict:
                raise ValueError(f"{key} is there already: {old[0]} would replace it")
        if state_dict[old[0]].ndim == 1 and entry.is_legacy:
            renamed[old[0]] = new[0]
            left_out.update(old[1:])
            continue
        renamed.update(zip(old, new, strict=True))
        if not entry.has_v:
            added[old[1]] = new[2], _absent_v(entry, state_dict, dims or {})
    converted: OrderedDict[str, Any] = OrderedDict()
    for key, value in state_dict.items():
        if key not in left_out:
            converted[renamed.get(key, key)] = value
        if key in added:
            name, value = added[key]
            converted[name] = value
    metadata = getattr(state_dict, "_metadata", None)
    if metadata is not None:
        converted._metadata = _convert_metadata(metadata, entries)  # type: ignore[attr-defined]
    return converted


def find_entries(state_dict: Mapping[str, Any]) -> list[Entry]:
    """The spectral norms of a state dict; ValueError where one is incomplete or does not fit."""
    entries = [*_find_legacy(state_dict), *_find_parametrized(state_dict)]
    for entry in entries:
        keys = entry.legacy_keys if entry.is_legacy else entry.parametrized_keys
        # Not below another parametrization, whose output's shape stands nowhere.
        if keys[0] in state_dict and keys[1] in state_dict:
            _check_shapes([key for key in keys if key in state_dict], state_dict)
    return entries


def right_vector(weight: Tensor, u: Tensor, dim: int, weight_sn: Tensor | None = None) -> Tensor:
    """The v that a legacy checkpoint lacks, of length 1 and with the dtype of ``u``.

    The weight as it was last normalized, ``weight_sn``, stands in such a checkpoint of torch before
    1.0. It says what sigma is to be, which a v of length 1 gives as long as |W^H u| is no smaller.
    Without it v is W^H u, as the next power iteration would have it.
    """
    with torch.no_grad():
        dtype = state_dtype(weight)
        matrix = weight.movedim(dim, 0).flatten(1).to(dtype)
        w_u = matrix.mH @ u.to(dtype)
        length = torch.linalg.vector_norm(w_u)
        if not length > 0:  # whatever direction, but one: from zeros no power iteration leads away
            return torch.full_like(w_u, max(w_u.numel(), 1) ** -0.5).to(u.dtype)
        v: Tensor = w_u / length
        if weight_sn is not None:
            sigma = _norm(weight) / _norm(weight_sn)
            cosine = (sigma / length).clamp(max=1)
            # Back from where the iteration would lead: the v that gave u lies that way.
            ahead = matrix.mH @ (matrix @ v)
            aside = ahead - torch.vdot(v, ahead) * v
            if cosine < 1 and aside.abs().max() > 0:
                aside = aside / torch.linalg.vector_norm(aside)
                v = cosine * v - (1 - cosine.square()).sqrt() * aside
        return v.to(u.dtype)


def _norm(tensor: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(tensor, dtype=state_dtype(tensor))
    return norm


def _find_legacy(state_dict: Mapping[str, Any]) -> Iterator[Entry]:
    declared = dict.fromkeys(_declared(getattr(state_dict, "_metadata", None) or {}))
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
        # Not all that is called so is a spectral norm's: pruning has weight_orig, too.
        if not (
            path in declared or (original and (u or v)) or _is_vector_of_a_weight(keys, state_dict)
        ):
            continue
        for key, present, beside in ((keys[0], original, keys[1]), (keys[1], u, keys[0])):
            if not present:
                raise ValueError(
                    f"{key} is missing"
                    + (f" beside {beside}" if beside in state_dict else "")
                    + ": the spectral norm is incomplete"
                )
        yield Entry(prefix + dot, name, is_legacy=True, has_v=v)


def _declared(metadata: Mapping[str, Any]) -> Iterator[str]:
    """The qualified names of the parameters that torch's legacy hook has noted in the metadata."""
    for module, local in metadata.items():
        for version in local.get("spectral_norm", {}):
            name = version.removesuffix(".version")
            yield f"{module}.{name}" if module else name


def _is_vector_of_a_weight(keys: tuple[str, str, str], state_dict: Mapping[str, Any]) -> bool:
    u = state_dict.get(keys[1])
    return isinstance(u, Tensor) and u.ndim == 1 and "weight" in keys[1].rpartition(".")[2]


def _find_parametrized(state_dict: Mapping[str, Any]) -> Iterator[Entry]:
    for (prefix, name), rests in _parametrized(state_dict).items():
        indices = dict.fromkeys(rest.partition(".")[0] for rest in rests if _VECTOR.fullmatch(rest))
        path = f"{prefix}parametrizations.{name}"
        for index in indices:
            for vector, other in (("_u", "_v"), ("_v", "_u")):
                if f"{index}.{vector}" not in rests:
                    raise ValueError(
                        f"{path}.{index}.{vector} is missing beside {path}.{index}.{other}: the "
                        "spectral norm is incomplete"
                    )
        if indices and not any(rest.startswith("original") for rest in rests):
            raise ValueError(f"{path}.original is missing: the spectral norm is incomplete")
        if indices:
            yield Entry(prefix, name, is_legacy=False)


def _parametrized(state_dict: Mapping[str, Any]) -> dict[tuple[str, str], list[str]]:
    """What stands below each parametrized tensor, by its module's prefix and its name."""
    below: dict[tuple[str, str], list[str]] = {}
    for key in state_dict:
        match = _PARAMETRIZED.fullmatch(key) if isinstance(key, str) else None
        if match is not None:
            below.setdefault((match["prefix"], match["name"]), []).append(match["rest"])
    return below


def _check_alone(entry: Entry, state_dict: Mapping[str, Any]) -> None:
    expected = entry.parametrized_keys
    path = expected[0].removesuffix("original")
    for key in state_dict:
        if isinstance(key, str) and key.startswith(path) and key not in expected:
            raise ValueError(
                f"{key} has no place in the legacy layout, which holds one spectral norm and "
                f"nothing else on {entry.prefix}{entry.name}"
            )


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


def _absent_v(entry: Entry, state_dict: Mapping[str, Any], dims: Mapping[str, int]) -> Tensor:
    path = entry.prefix + entry.name
    original, u = (state_dict[key] for key in entry.legacy_keys[:2])
    axes = [d for d in range(original.ndim) if original.shape[d] == u.numel()]
    if original.ndim == 2:
        axes = axes[:1]  # no convolution
    if path in dims:
        if not -original.ndim <= dims[path] < original.ndim:
            limits = f"[{-original.ndim}, {original.ndim - 1}]"
            raise ValueError(f"dims[{path!r}] must be in {limits}, got {dims[path]}")
        axes = [d for d in axes if d == dims[path] % original.ndim]
        if not axes:
            raise ValueError(
                f"dims: {path} has {original.shape[dims[path]]} in dimension {dims[path]}, but "
                f"{entry.legacy_keys[1]} has {u.numel()}"
            )
    if 0 in axes and 1 in axes:
        raise ValueError(
            f"{entry.legacy_keys[2]} is missing, and a shape of {tuple(original.shape)} does not "
            f"say which dimension is that of the outputs: give dims={{{path!r}: 0}}, or 1 for a "
            "transposed convolution"
        )
    return right_vector(original, u, axes[0], state_dict.get(path))


def _convert_metadata(metadata: Mapping[str, Any], entries: list[Entry]) -> OrderedDict[str, Any]:
    """torch's notes of the modules: those that come and go, and the version of a legacy hook."""
    converted = OrderedDict((path, dict(local)) for path, local in metadata.items())
    for entry in entries:
        module = entry.prefix.removesuffix(".")
        parametrizations = entry.prefix + "parametrizations"
        tensor = f"{parametrizations}.{entry.name}"
        if entry.is_legacy:
            local = converted.get(module, {})
            versions = dict(local.get("spectral_norm", {}))
            versions.pop(f"{entry.name}.version", None)
            local.pop("spectral_norm", None)
            if versions:
                local["spectral_norm"] = versions
            for path in (parametrizations, tensor, f"{tensor}.0"):
                converted.setdefault(path, {"version": 1})
        else:
            local = converted.setdefault(module, {"version": 1})
            versions = {**local.get("spectral_norm", {}), f"{entry.name}.version": LEGACY_VERSION}
            local["spectral_norm"] = versions
            for path in (tensor, f"{tensor}.0"):
                converted.pop(path, None)
            if not any(path.startswith(parametrizations + ".") for path in converted):
                converted.pop(parametrizations, None)
    return converted
