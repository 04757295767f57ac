"""The penalty on spectral norms, in place of a division by them or beside it."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from ..functional import l2_normalize
from ..modules.access import originals_of
from ..modules.spectral_norm import SpectralNormWrapper
from ..ops.calls import Access, Evaluate
from ..ops.modes import eager
from ..ops.modes.composite import without_autocast
from ..ops.penalty import Directions, Penalty, half_squares
from ..ops.rescaling import PLAIN
from ..parametrizations.base import evaluating
from ..parametrizations.spectral_norm import SpectralNormParametrization
from ..reports import normalized

Normed = tuple[SpectralNormParametrization, Tensor]
"""A spectral norm and the tensor that it is of."""


def spectral_penalty(model: nn.Module) -> Tensor:
    r"""Half the sum of the squared spectral norms of a model's normalized parameters.

    To be added to a loss, times some weight: the spectral norm regularization of Yoshida and Miyato
    (2017, arXiv 1705.10941). Of each parameter that a spectral norm is on, before that
    normalization, whatever its options: with ``bound=float("inf")`` the layers compute with their
    weights as they are. Sigma is :math:`u^T W v` of the parameter as it is now, and of the u and v
    that the last access left, which are held constant; nothing iterates here.

    Args:
        model: any module that holds normalized parameters, a parameter in two places counted once.

    Returns:
        A tensor of shape (), of float32 at least, on the device of the first such parameter;
        differentiable twice. One node of the graph for all, and one product with each. Compiled
        code leaves its graph for it.

    Raises:
        ValueError: nothing is normalized, or something waits for its module's first forward.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from snorm_triton import apply_spectral_norm, spectral_penalty
        >>> model = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 2))
        >>> model = apply_spectral_norm(model, bound=float("inf"))
        >>> loss = model(torch.randn(3, 20)).square().mean() + 0.01 * spectral_penalty(model)
        >>> loss.backward()
    """
    together: list[Normed] = []
    apart: list[Normed] = []
    for normed in _normed(model):
        (together if _joins(*normed) else apart).append(normed)
    squares = [half_squares([_sigma(*normed)]) for normed in apart]
    devices: dict[torch.device, list[Normed]] = {}
    for normed in together:
        devices.setdefault(normed[1].device, []).append(normed)
    for members in devices.values():
        squares.append(_of_one_node(members))
    return torch.stack([each.to(squares[0]) for each in squares]).sum()


def _normed(model: nn.Module) -> list[Normed]:
    found: dict[int, Normed] = {}
    for name, wrapper in normalized(model):
        if wrapper.is_deferred:
            raise ValueError(f"{name} waits for its module's first forward: run one first")
        norm, tensor = _first(wrapper)
        found.setdefault(id(tensor), (norm, tensor))
    if not found:
        raise ValueError(
            f"no spectral norm of snorm_triton is registered in {type(model).__name__}"
        )
    return list(found.values())


def _first(wrapper: SpectralNormWrapper) -> Normed:
    """The first of ours on a parameter, and what the parametrizations before it make of that."""
    all_lists: Any = wrapper.module.parametrizations
    parametrizations, first = all_lists[wrapper.name], wrapper.parametrizations[0]
    inputs = tuple(originals_of(parametrizations).values())
    for each in parametrizations:
        if each is first:
            break
        with evaluating():
            inputs = (each(*inputs),)
    return first, inputs[0]


def _access(norm: SpectralNormParametrization, tensor: Tensor) -> Access:
    """To sigma alone, of u and v as they are."""
    with evaluating():
        return norm.access((tensor,), [])._replace(rescaling=PLAIN)


def _joins(norm: SpectralNormParametrization, tensor: Tensor) -> bool:
    return norm.mode(tensor) is eager and tensor.numel() > 0 and norm.joins((tensor,))


def _of_one_node(members: list[Normed]) -> Tensor:
    accesses = [_access(*normed) for normed in members]
    directions = [Directions(a.u, a.v, a.dim, cast(Evaluate, a.step).eps) for a in accesses]
    tensors = [tensor for _, tensor in members]
    kind = tensors[0].device.type
    penalty: Tensor = without_autocast(kind, Penalty.apply, directions, *tensors)
    return penalty


def _sigma(norm: SpectralNormParametrization, tensor: Tensor) -> Tensor:
    if tensor.ndim == 1:
        return l2_normalize(tensor, norm.eps)[1]
    return norm.mode(tensor).normalize(_access(norm, tensor)).sigma
