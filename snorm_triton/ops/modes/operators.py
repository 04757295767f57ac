"""The normalization of many weights as an operator of torch.library: functional, differentiable.

Buffers are written outside of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...torch_internals.autograd import in_backward
from .. import recomputation
from ..autograd import outer
from ..calls import Access, Evaluate, Iterate, Normalized, Replay, State, Step
from ..state import BELOW_AUTOGRAD, TAGS
from .eager import normalize_together as normalize_eagerly
from .gradient_operator import like_dense

NORMALIZE = "snorm_triton::normalize"
Lists = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]

torch.library.define(
    NORMALIZE,
    "(Tensor[] weights, Tensor[] us, Tensor[] vs, Tensor[] sigmas, SymInt[] dims, "
    "SymInt[] n_power_iterations, float[] eps, Tensor[] due, bool[] keeps, ScalarType dtype, "
    "str backend) "
    "-> (Tensor[], Tensor[], Tensor[], Tensor[])",
    tags=TAGS,
)


def _normalize(
    weights: list[Tensor],
    us: list[Tensor],
    vs: list[Tensor],
    sigmas: list[Tensor],
    dims: list[int],
    n_power_iterations: list[int],
    eps: list[float],
    due: list[Tensor],
    keeps: list[bool],
    dtype: torch.dtype,
    backend: str,
) -> Lists:
    checkpoints = recomputation.around()
    owners = [
        recomputation.owner_of(u) if kept else None for u, kept in zip(us, keeps, strict=True)
    ]
    accesses = []
    for i, owner in enumerate(owners):
        state, step = State(us[i], vs[i], sigmas[i]), _step(n_power_iterations[i], eps[i])
        if keeps[i]:
            is_due = not due or not _on_host(due[i]) or due[i].item() != 0
            state, step = recomputation.at_run_time(state, step, checkpoints, owner, is_due)
        accesses.append(Access(weights[i], state.u, state.v, dims[i], step, dtype, backend))
    with torch.no_grad():
        outputs = normalize_eagerly(accesses, apart=True)
        if due and not in_backward() and not _on_host(due[0]):
            outputs = _where_due(due, outputs, accesses, sigmas)
    for owner, output in zip(owners, outputs, strict=True):
        if owner is not None and checkpoints:
            state = State(*(x.clone() for x in output.state))
            recomputation.keep(checkpoints, owner, state)
    weights_sn, us, vs, sigmas, _ = (list(each) for each in zip(*outputs, strict=True))
    return weights_sn, us, vs, sigmas


def _step(n: int, eps: float) -> Step:
    return Iterate(n) if n > 0 else Evaluate(eps)


def _on_host(due: Tensor) -> bool:
    """Whether the flag can be read without waiting for a device."""
    return due.device.type == "cpu"


def _where_due(
    due: list[Tensor],
    outputs: list[Normalized],
    accesses: list[Access],
    sigmas: list[Tensor],
) -> list[Normalized]:
    """``outputs``, or where a flag is down what the state before gives, decided on the device."""
    replayed = []
    for flag, output, access, last in zip(due, outputs, accesses, sigmas, strict=True):
        before = access.u, access.v, last
        u, v, sigma = (
            torch.where(flag > 0, new, old) for new, old in zip(output.state, before, strict=True)
        )
        replayed.append(access._replace(u=u, v=v, step=Replay(sigma)))
    return normalize_eagerly(replayed, apart=True)


def _fake_normalize(
    weights: list[Tensor],
    us: list[Tensor],
    vs: list[Tensor],
    sigmas: list[Tensor],
    dims: list[int],
    n_power_iterations: list[int],
    eps: list[float],
    due: list[Tensor],
    keeps: list[bool],
    dtype: torch.dtype,
    backend: str,
) -> Lists:
    weights_sn = [like_dense(weight, dim, dtype) for weight, dim in zip(weights, dims, strict=True)]
    us, vs, sigmas = ([torch.empty_like(x) for x in each] for each in (us, vs, sigmas))
    return weights_sn, us, vs, sigmas


torch.library.impl(NORMALIZE, BELOW_AUTOGRAD, _normalize)
torch.library.register_fake(NORMALIZE, _fake_normalize)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Lists) -> None:
    weights, _, _, _, ctx.dims, _, _, due, _, _, ctx.backend = inputs
    ctx.flags = len(due)
    _, us, vs, sigmas = output
    ctx.save_for_backward(*weights, *us, *vs, *sigmas)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any,
    grads: list[Tensor | None],
    _grads_u: list[Tensor | None],
    _grads_v: list[Tensor | None],
    grads_sigma: list[Tensor | None],
) -> Any:
    n = len(ctx.dims)
    weights, us, vs, sigmas = (ctx.saved_tensors[k * n : (k + 1) * n] for k in range(4))
    result: list[Tensor | None] = [None] * n
    used = [i for i, grad in enumerate(grads) if grad is not None]
    if used:
        chosen = [[each[i] for i in used] for each in (grads, weights, us, vs, sigmas, ctx.dims)]
        grad_weights = torch.ops.snorm_triton.rescale_backward(*chosen, ctx.backend)
        for i, grad_weight in zip(used, grad_weights, strict=True):
            result[i] = grad_weight
    for i, grad_sigma in enumerate(grads_sigma):
        if grad_sigma is not None:
            along = (grad_sigma * outer(us[i], vs[i], weights[i].shape, ctx.dims[i])).to(
                weights[i].dtype
            )
            already = result[i]
            result[i] = along if already is None else already + along
    none: list[None] = [None] * n
    return result, none, none, none, None, None, None, [None] * ctx.flags, None, None, None


torch.library.register_autograd(NORMALIZE, _backward, setup_context=_setup_context)
