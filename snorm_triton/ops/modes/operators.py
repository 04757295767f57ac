"""The normalization of many weights as an operator of torch.library: functional, differentiable.

Buffers are written outside of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...torch_internals.autograd import in_backward
from .. import recomputation
from ..calls import Access, Evaluate, Iterate, Normalized, Replay, State, Step
from ..derivatives import outer
from ..state import BELOW_AUTOGRAD, TAGS
from .eager import normalize_together as normalize_eagerly
from .gradient_operator import like_dense, rescalings_of

NORMALIZE = "snorm_triton::normalize"
Lists = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]

torch.library.define(
    NORMALIZE,
    "(Tensor[] weights, Tensor[] us, Tensor[] vs, Tensor[] sigmas, SymInt[] dims, "
    "SymInt[] n_power_iterations, float[] eps, Tensor[] due, bool[] keeps, float[] bounds, "
    "float[] scales, Tensor[] learned, ScalarType dtype, str backend) "
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
    bounds: list[float],
    scales: list[float],
    learned: list[Tensor],
    dtype: torch.dtype,
    backend: str,
) -> Lists:
    checkpoints = recomputation.around()
    owners = [
        recomputation.owner_of(u) if kept else None for u, kept in zip(us, keeps, strict=True)
    ]
    accesses, rescalings = [], rescalings_of(bounds, scales, learned)
    for i, owner in enumerate(owners):
        state, step = State(us[i], vs[i], sigmas[i]), _step(n_power_iterations[i], eps[i])
        if keeps[i]:
            is_due = not due or not _on_host(due[i]) or due[i].item() != 0
            state, step = recomputation.at_run_time(state, step, checkpoints, owner, is_due)
        taken = weights[i], state.u, state.v, dims[i], step, dtype, backend, rescalings[i]
        accesses.append(Access(*taken))
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
    bounds: list[float],
    scales: list[float],
    learned: list[Tensor],
    dtype: torch.dtype,
    backend: str,
) -> Lists:
    weights_sn = [like_dense(weight, dim, dtype) for weight, dim in zip(weights, dims, strict=True)]
    us, vs, sigmas = ([torch.empty_like(x) for x in each] for each in (us, vs, sigmas))
    return weights_sn, us, vs, sigmas


torch.library.impl(NORMALIZE, BELOW_AUTOGRAD, _normalize)
torch.library.register_fake(NORMALIZE, _fake_normalize)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Lists) -> None:
    weights, _, _, _, ctx.dims, _, _, due, _, *numbers, learned, _, ctx.backend = inputs
    ctx.flags, ctx.numbers = len(due), numbers
    _, us, vs, sigmas = output
    ctx.save_for_backward(*weights, *us, *vs, *sigmas, *learned)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any,
    grads: list[Tensor | None],
    _grads_u: list[Tensor | None],
    _grads_v: list[Tensor | None],
    grads_sigma: list[Tensor | None],
) -> Any:
    n = len(ctx.dims)
    weights, us, vs, sigmas, learned = (ctx.saved_tensors[k * n : (k + 1) * n] for k in range(5))
    result: list[Tensor | None] = [None] * n
    of_scales: list[Tensor | None] = [None] * len(learned)
    used = [i for i, grad in enumerate(grads) if grad is not None]
    if used:
        lists = grads, weights, us, vs, sigmas, learned, ctx.dims, *ctx.numbers
        chosen = [[each[i] for i in used if each] for each in lists]
        gradients = torch.ops.snorm_triton.rescale_backward(*chosen, ctx.backend)
        for each, of_kind in (
            (result, gradients[: len(used)]),
            (of_scales, gradients[len(used) :]),
        ):
            for i, gradient in zip(used, of_kind, strict=False):
                each[i] = gradient
    for i, grad_sigma in enumerate(grads_sigma):
        if grad_sigma is not None:
            along = (grad_sigma * outer(us[i], vs[i], weights[i].shape, ctx.dims[i])).to(
                weights[i].dtype
            )
            already = result[i]
            result[i] = along if already is None else already + along
    none: list[None] = [None] * n
    flags = [None] * ctx.flags
    numbers = None, None, None, flags, None, None, None
    return result, none, none, none, *numbers, of_scales, None, None


torch.library.register_autograd(NORMALIZE, _backward, setup_context=_setup_context)
