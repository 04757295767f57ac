"""The v that a checkpoint of the legacy hook lacks: torch before 1.0 did not save it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..functional import state_dtype
from .layouts import Entry


def right_vector(weight: Tensor, u: Tensor, dim: int, weight_sn: Tensor | None = None) -> Tensor:
    """The missing v, of length 1 and with the dtype of ``u``.

    A checkpoint of torch before 1.0 holds ``weight_sn``, the weight as it was last normalized. It
    tells sigma, which a v of length 1 gives as long as |W^H u| is no smaller. Without it v is
    W^H u, as the next power iteration would have it.
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


def missing_v(entry: Entry, state_dict: Mapping[str, Any], dims: Mapping[str, int]) -> Tensor:
    """The v of a legacy entry; ValueError where the state dict does not determine it."""
    original_key, u_key, v_key = entry.keys
    weight, u = state_dict[original_key], state_dict[u_key]
    dim = _output_dim(entry, weight, u, dims.get(entry.path))
    for key, shape in ((original_key, weight.shape), (u_key, u.shape), (entry.path, weight.shape)):
        if key in state_dict and not _is_dense(state_dict[key], shape):
            raise ValueError(
                f"{v_key} is missing, and to compute it {key} must be a dense tensor of shape "
                f"{tuple(shape)}, floating or complex, and not expanded"
            )
    return right_vector(weight, u, dim, state_dict.get(entry.path))


def _is_dense(value: Any, shape: torch.Size) -> bool:
    """Whether it is a tensor of numbers with memory for each: a copy takes no more than it does."""
    return (
        isinstance(value, Tensor)
        and value.shape == shape
        and value.layout == torch.strided
        and not value.is_meta
        and (value.is_floating_point() or value.is_complex())
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def _output_dim(entry: Entry, original: Tensor, u: Tensor, dim: int | None) -> int:
    axes = [d for d in range(original.ndim) if original.shape[d] == u.numel()]
    if original.ndim == 2:
        axes = axes[:1]  # no convolution
    if dim is not None:
        if not -original.ndim <= dim < original.ndim:
            limits = f"[{-original.ndim}, {original.ndim - 1}]"
            raise ValueError(f"dims[{entry.path!r}] must be in {limits}, got {dim}")
        axes = [d for d in axes if d == dim % original.ndim]
        if not axes:
            raise ValueError(
                f"dims: {entry.path} has {original.shape[dim]} in dimension {dim}, but "
                f"{entry.keys[1]} has {u.numel()}"
            )
    if 0 in axes and 1 in axes:
        raise ValueError(
            f"{entry.keys[2]} is missing, and the shape {tuple(original.shape)} does not say which "
            f"dimension holds the outputs: give dims={{{entry.path!r}: 0}}, or 1 for a transposed "
            "convolution"
        )
    return axes[0]
