"""Compiled code: the normalization as operators of torch.library, closed to the compiler.

Each is functional and differentiable. They take lists, so that the weights of a model that are
normalized together are one operator. Buffers are written outside of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...torch_internals.autograd import in_backward
from ...torch_internals.tracing import is_exporting
from .. import recomputation
from ..autograd import Estimate, outer, rescale_backward, second_derivatives
from ..calls import Access, Evaluate, Iterate, Normalized, Replay, State, Step
from ..dispatch import backend_for
from ..matrix_view import in_matrix_layout, matrix_view
from . import composite
from .eager import normalize_together as normalize_eagerly

NORMALIZE = "snorm_triton::normalize"
RESCALE_BACKWARD = "snorm_triton::rescale_backward"
_BELOW_AUTOGRAD = "CompositeExplicitAutograd"  # on every device

# The compiler need not copy a weight back that it has laid out anew, such as for a convolution.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout)

Lists = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]


def normalize_together(accesses: Sequence[Access]) -> list[Normalized]:
    """As :func:`.eager.normalize_together`, while compiling; an exported program holds no operator
    of ours.
    """
    results: dict[int, Normalized] = {}
    kinds: dict[tuple[Any, ...], list[int]] = {}
    for i, access in enumerate(accesses):
        weight, step = access.weight, access.step
        if weight.numel() == 0 or is_exporting():
            results[i] = composite.normalize(access)
        else:
            has_due = isinstance(step, Iterate) and step.due is not None
            kind = weight.device, weight.dtype, access.dtype, access.backend, has_due
            kinds.setdefault(kind, []).append(i)
    for members in kinds.values():
        results.update(zip(members, _normalize_alike([accesses[i] for i in members]), strict=True))
    return [results[i] for i in range(len(accesses))]


def _normalize_alike(accesses: Sequence[Access]) -> list[Normalized]:
    steps = [_as_numbers(access) for access in accesses]
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
        accesses[0].dtype,
        accesses[0].backend,
    )
    results = []
    for access, weight_sn, u, v, sigma in zip(accesses, *lists, strict=True):
        u, v = u.detach(), v.detach()
        if access.weight.is_complex():
            weight_sn, sigma = composite.rescale(access.weight, u, v, access.dim, access.dtype)
        results.append(Normalized(weight_sn, u, v, sigma))
    return results


def _as_numbers(access: Access) -> tuple[Tensor, int, float, Tensor | None, bool]:
    """Of a step that compiled code takes: the last sigma, which a recomputation replays, the
    iterations, eps, the flag of those that may be due, and whether it overwrites a state.
    """
    u, step = access.u, access.step
    if isinstance(step, Iterate):
        if step.live is not None:
            return step.live.sigma.to(u.dtype), step.n, 1.0, step.due, True
        return u.new_zeros(()), step.n, 1.0, None, False
    assert isinstance(step, Evaluate)
    return u.new_zeros(()), 0, step.eps, None, False


torch.library.define(
    NORMALIZE,
    "(Tensor[] weights, Tensor[] us, Tensor[] vs, Tensor[] sigmas, SymInt[] dims, "
    "SymInt[] n_power_iterations, float[] eps, Tensor[] due, bool[] keeps, ScalarType dtype, "
    "str backend) "
    "-> (Tensor[], Tensor[], Tensor[], Tensor[])",
    tags=_TAGS,
)
torch.library.define(
    RESCALE_BACKWARD,
    "(Tensor[] grads, Tensor[] weights, Tensor[] us, Tensor[] vs, Tensor[] sigmas, SymInt[] dims, "
    "str backend) -> Tensor[]",
    tags=_TAGS,
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
            state, step = at_run_time(state, step, checkpoints, owner, is_due)
        accesses.append(Access(weights[i], state.u, state.v, dims[i], step, dtype, backend))
    with torch.no_grad():
        outputs = _fresh(accesses)
        if due and not in_backward() and not _on_host(due[0]):
            outputs = _where_due(due, outputs, accesses, sigmas)
    for owner, (_, u, v, sigma) in zip(owners, outputs, strict=True):
        if owner is not None and checkpoints:
            state = State(u.clone(), v.clone(), sigma.clone())
            recomputation.keep(checkpoints, owner, state)
    weights_sn, us, vs, sigmas = (list(each) for each in zip(*outputs, strict=True))
    return weights_sn, us, vs, sigmas


def _step(n: int, eps: float) -> Step:
    return Iterate(n) if n > 0 else Evaluate(eps)


def at_run_time(
    state: State,
    step: Step,
    checkpoints: recomputation.Checkpoints,
    owner: object,
    is_due: bool = True,
) -> tuple[State, Step]:
    """What an access takes that was traced as ``step`` and now runs, with the last ``state``.

    Inside a backward nothing iterates. What is recomputed there takes what its checkpoint kept, or
    else the buffers, which hold by then what the last forward left in them.
    """
    kept = recomputation.replay(checkpoints, owner)
    if kept is not None:
        return kept, Replay(kept.sigma)
    if isinstance(step, Iterate) and (in_backward() or not is_due):
        return state, Replay(state.sigma)
    return state, step


def _fresh(accesses: Sequence[Access]) -> list[list[Tensor]]:
    """The outputs, none of them an input."""
    return [
        [x.clone() if x is given else x for x, given in zip(output[:4], access, strict=False)]
        for output, access in zip(normalize_eagerly(accesses, apart=True), accesses, strict=True)
    ]


def _on_host(due: Tensor) -> bool:
    """Whether the flag can be read without waiting for a device."""
    return due.device.type == "cpu"


def _where_due(
    due: list[Tensor],
    outputs: list[list[Tensor]],
    accesses: list[Access],
    sigmas: list[Tensor],
) -> list[list[Tensor]]:
    """``outputs``, or where a flag is down what the state before gives, decided on the device."""
    replayed = []
    for flag, (_, *state), access, last in zip(due, outputs, accesses, sigmas, strict=True):
        before = access.u, access.v, last
        u, v, sigma = (
            torch.where(flag > 0, new, old) for new, old in zip(state, before, strict=True)
        )
        replayed.append(access._replace(u=u, v=v, step=Replay(sigma)))
    return [list(each[:4]) for each in normalize_eagerly(replayed, apart=True)]


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
    weights_sn = [
        _like_dense(weight, dim, dtype) for weight, dim in zip(weights, dims, strict=True)
    ]
    us, vs, sigmas = ([torch.empty_like(x) for x in each] for each in (us, vs, sigmas))
    return weights_sn, us, vs, sigmas


torch.library.impl(NORMALIZE, _BELOW_AUTOGRAD, _normalize)
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


def _rescale_backward(
    grads: list[Tensor],
    weights: list[Tensor],
    us: list[Tensor],
    vs: list[Tensor],
    sigmas: list[Tensor],
    dims: list[int],
    backend: str,
) -> list[Tensor]:
    kernels = backend_for(weights[0], backend)
    places = [
        in_matrix_layout(weight.detach(), dim) for weight, dim in zip(weights, dims, strict=True)
    ]
    estimates = [
        Estimate(dense, dense._version, view, dim, u, v, sigma)
        for (dense, view), dim, u, v, sigma in zip(places, dims, us, vs, sigmas, strict=True)
    ]
    with torch.no_grad():
        return list(rescale_backward(kernels, estimates, grads))


def _fake_rescale_backward(
    grads: list[Tensor],
    weights: list[Tensor],
    us: list[Tensor],
    vs: list[Tensor],
    sigmas: list[Tensor],
    dims: list[int],
    backend: str,
) -> list[Tensor]:
    return [
        _like_dense(weight, dim, weight.dtype) for weight, dim in zip(weights, dims, strict=True)
    ]


torch.library.impl(RESCALE_BACKWARD, _BELOW_AUTOGRAD, _rescale_backward)
torch.library.register_fake(RESCALE_BACKWARD, _fake_rescale_backward)


def _setup_rescale_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    *lists, ctx.dims, _ = inputs
    ctx.save_for_backward(*(tensor for each in lists for tensor in each))
    ctx.set_materialize_grads(False)


def _second_backward(ctx: Any, grads_out: list[Tensor | None]) -> Any:
    n = len(ctx.dims)
    grads, weights, us, vs, _ = (ctx.saved_tensors[k * n : (k + 1) * n] for k in range(5))
    grad_grads: list[Tensor | None] = [None] * n
    grad_weights: list[Tensor | None] = [None] * n
    for i, grad_out in enumerate(grads_out):
        if grad_out is not None:
            grad_grads[i], grad_weights[i] = second_derivatives(
                grad_out, grads[i], weights[i], us[i], vs[i], ctx.dims[i]
            )
    return grad_grads, grad_weights, [None] * n, [None] * n, [None] * n, None, None


torch.library.register_autograd(
    RESCALE_BACKWARD, _second_backward, setup_context=_setup_rescale_backward
)


def _like_dense(weight: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """Memory as :func:`in_matrix_layout` would lay the weight out."""
    shape, stride = ([int(x) for x in each] for each in (weight.shape, weight.stride()))
    result = weight.new_empty_strided(shape, stride, dtype=dtype)  # a parameter's, never symbolic
    return weight.new_empty(shape, dtype=dtype) if matrix_view(result, dim) is None else result
