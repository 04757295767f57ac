"""Compiled code: the normalization as an operator that torch.compile does not open.

It takes lists, so that the weights of a model that are normalized together are one operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...torch_internals.tracing import is_exporting
from .. import state
from ..calls import Access, Evaluate, Iterate, Normalized
from . import composite
from . import operators as operators  # which defines it


def normalize_together(accesses: Sequence[Access]) -> list[Normalized]:
    """As :func:`.eager.normalize_together`, while compiling; an exported program holds no operator
    of ours.
    """
    results: dict[int, Normalized] = {}
    kinds: dict[tuple[Any, ...], list[int]] = {}
    for i, access in enumerate(accesses):
        weight = access.weight
        if weight.numel() == 0 or is_exporting():
            results[i] = composite.normalize(access)
        else:
            has = _due(access) is not None, access.rescaling.learned is not None
            kind = weight.device, weight.dtype, access.dtype, access.backend, has
            kinds.setdefault(kind, []).append(i)
    for members in kinds.values():
        results.update(zip(members, _normalize_alike([accesses[i] for i in members]), strict=True))
    return [results[i] for i in range(len(accesses))]


def normalize(access: Access) -> Normalized:
    """As :func:`normalize_together`, of one."""
    return normalize_together([access])[0]


def write(accesses: Sequence[Access], outputs: Sequence[Normalized]) -> None:
    """As :func:`snorm_triton.ops.state.write`.

    A checkpoint inside of compiled code recomputes from the buffers as they then are. Where each
    access iterates that is wrong once another has, and their versions let autograd say so.
    """
    pairs = list(zip(accesses, outputs, strict=True))
    for tells in (True, False):
        chosen = [pair for pair in pairs if (_due(pair[0]) is None) == tells]
        state.write(
            [access for access, _ in chosen],
            [output for _, output in chosen],
            partial(state.overwrite, tells=tells),
        )


def _due(access: Access) -> Tensor | None:
    return access.step.due if isinstance(access.step, Iterate) else None


def _normalize_alike(accesses: Sequence[Access]) -> list[Normalized]:
    steps = [_as_numbers(access) for access in accesses]
    rescalings = [access.rescaling for access in accesses]
    lists = torch.ops.snorm_triton.normalize(
        # The derivatives of a complex weight are torch's own.
        [a.weight.detach() if a.weight.is_complex() else a.weight for a in accesses],
        [access.u for access in accesses],
        [access.v for access in accesses],
        [sigma for sigma, *_ in steps],
        [access.dim for access in accesses],
        [n for _, n, _, _, _ in steps],
        [eps for _, _, eps, _, _ in steps],
        [due for _, _, _, due, _ in steps if due is not None],
        [has_live for *_, has_live in steps],
        [rescaling.bound for rescaling in rescalings],
        [rescaling.scale for rescaling in rescalings],
        [rescaling.learned for rescaling in rescalings if rescaling.learned is not None],
        accesses[0].dtype,
        accesses[0].backend,
    )
    results = []
    for access, weight_sn, u, v, sigma in zip(accesses, *lists, strict=True):
        u, v = u.detach(), v.detach()
        if access.weight.is_complex():
            taken = access.weight, u, v, access.dim, access.dtype, access.rescaling
            weight_sn, sigma = composite.rescale(*taken)
        results.append(Normalized(weight_sn, u, v, sigma))
    return results


def _as_numbers(access: Access) -> tuple[Tensor, int, float, Tensor | None, bool]:
    """Of a step that compiled code takes: the last sigma, which a recomputation replays, the
    iterations, eps, the flag of those that may be due, and whether it overwrites a state.
    """
    u, step = access.u, access.step
    if isinstance(step, Iterate):
        if step.live is not None:
            return step.live[2].to(u.dtype), step.n, 1.0, step.due, True
        return u.new_zeros(()), step.n, 1.0, None, False
    assert isinstance(step, Evaluate)
    return u.new_zeros(()), 0, step.eps, None, False
