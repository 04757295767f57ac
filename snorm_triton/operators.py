"""The normalization as operators of torch.library, for code that torch.compile traces.

To the compiler each is opaque, functional and differentiable. They take lists, so that the weights
of a model that are normalized together are one operator. Buffers are written outside of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import recomputation
from .autograd import Estimate, outer, rescale_backward, second_derivatives
from .dispatch import operations
from .matrix_view import in_matrix_layout, matrix_view
from .normalization import Request, SpectralNormalized, rescale_in_torch
from .normalization import normalize_together as normalize_eagerly

NORMALIZE = "snorm_triton::normalize"
WRITE = "snorm_triton::write"
RESCALE_BACKWARD = "snorm_triton::rescale_backward"
_BELOW_AUTOGRAD = "CompositeExplicitAutograd"  # on every device

# The compiler need not copy a weight back that it has laid out anew, such as for a convolution.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout)

Lists = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]


def takes(request: Request) -> bool:
    """Whether the operators take it: an exported program holds torch's own operators alone."""
    # The flag itself: is_exporting() is true of all that torch 2.11 compiles.
    return request.weight.numel() > 0 and not torch.compiler._is_exporting_flag


def normalize_together(requests: Sequence[Request]) -> list[SpectralNormalized]:
    """As :func:`snorm_triton.functional.normalize_together`, while compiling."""
    results: dict[int, SpectralNormalized] = {}
    written: dict[bool, list[Tensor]] = {True: [], False: []}  # by whether versions are to tell
    values: dict[bool, list[Tensor]] = {True: [], False: []}
    kinds = [(r.weight.device, r.weight.dtype, r.dtype, r.backend, r.due is None) for r in requests]
    for kind in dict.fromkeys(kinds):
        members = [i for i, each in enumerate(kinds) if each == kind]
        alike = [requests[i] for i in members]
        lists = torch.ops.snorm_triton.normalize(
            # The derivatives of a complex weight are torch's own.
            [r.weight.detach() if r.weight.is_complex() else r.weight for r in alike],
            [request.u for request in alike],
            [request.v for request in alike],
            [_last_sigma(request) for request in alike],
            [request.dim for request in alike],
            [request.n_power_iterations for request in alike],
            [request.eps for request in alike],
            [request.due for request in alike if request.due is not None],
            [len(request.buffers) > 0 for request in alike],
            *kind[2:4],
        )
        for i, request, *outputs in zip(members, alike, *lists, strict=True):
            weight_sn, u, v, sigma = outputs
            normalized = SpectralNormalized(weight_sn, u.detach(), v.detach(), sigma)
            written_sigma = sigma.detach()
            if request.weight.is_complex():
                written_sigma = written_sigma.abs()
                weight_sn, sigma = rescale_in_torch(
                    request.weight, normalized.u, normalized.v, request.dim, request.dtype
                )
                normalized = normalized._replace(weight_sn=weight_sn, sigma=sigma)
            state = (normalized.u, normalized.v, written_sigma)
            tells = request.due is None
            if request.buffers:
                written[tells] += request.buffers
                values[tells] += state
            if request.due is not None:
                written[tells].append(request.due)
                values[tells].append(torch.zeros_like(request.due))
            results[i] = normalized
    for tells, buffers in written.items():
        if buffers:
            torch.ops.snorm_triton.write(buffers, values[tells], tells)
    return [results[i] for i in range(len(requests))]


def _last_sigma(request: Request) -> Tensor:
    """What a recomputation replays; of no use where nothing iterates."""
    return request.buffers[-1].to(request.u.dtype) if request.buffers else request.u.new_zeros(())


torch.library.define(
    NORMALIZE,
    "(Tensor[] weights, Tensor[] us, Tensor[] vs, Tensor[] sigmas, SymInt[] dims, "
    "SymInt[] n_power_iterations, float[] eps, Tensor[] due, bool[] keeps, ScalarType dtype, "
    "str backend) "
    "-> (Tensor[], Tensor[], Tensor[], Tensor[])",
    tags=_TAGS,
)
torch.library.define(WRITE, "(Tensor(a!)[] buffers, Tensor[] values, bool tells) -> ()", tags=_TAGS)
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
    # Inside a backward nothing iterates. What is recomputed there takes what its checkpoint kept,
    # or else the buffers, which hold by then what the last forward left in them.
    checkpoints, in_backward = recomputation.around(), recomputation.is_running()
    owners = [
        recomputation.owner_of(u) if kept else None for u, kept in zip(us, keeps, strict=True)
    ]
    requests = []
    for i, (n, owner) in enumerate(zip(n_power_iterations, owners, strict=True)):
        u, v, sigma = us[i], vs[i], sigmas[i]
        state = recomputation.replay(checkpoints, owner) if keeps[i] else None
        is_up_to_date = due and _on_host(due[i]) and due[i].item() == 0
        if state is not None:
            u, v, sigma = state
        elif n > 0 and (is_up_to_date or (keeps[i] and in_backward)):
            state = recomputation.State(u, v, sigma)
        numbers = dims[i], n, eps[i], dtype, backend, ()
        requests.append(Request(weights[i], u, v, *numbers, None if state is None else sigma))
    with torch.no_grad():
        outputs = [
            [x.clone() if x is given else x for x, given in zip(output, request, strict=False)]
            for output, request in zip(
                normalize_eagerly(requests, apart=True), requests, strict=True
            )
        ]
        if due and not in_backward and not _on_host(due[0]):
            outputs = _where_due(due, outputs, requests, sigmas)
    for owner, (_, u, v, sigma) in zip(owners, outputs, strict=True):
        if owner is not None and checkpoints:
            state = recomputation.State(u.clone(), v.clone(), sigma.clone())
            recomputation.keep(checkpoints, owner, state)
    weights_sn, us, vs, sigmas = (list(each) for each in zip(*outputs, strict=True))
    return weights_sn, us, vs, sigmas


def _on_host(due: Tensor) -> bool:
    """Whether the flag can be read without waiting for a device."""
    return due.device.type == "cpu"


def _where_due(
    due: list[Tensor],
    outputs: list[list[Tensor]],
    requests: list[Request],
    sigmas: list[Tensor],
) -> list[list[Tensor]]:
    """``outputs``, or where a flag is down what the state before gives, decided on the device."""
    replayed = []
    for flag, (_, *state), request, sigma in zip(due, outputs, requests, sigmas, strict=True):
        before = request.u, request.v, sigma
        u, v, sigma = (
            torch.where(flag > 0, new, old) for new, old in zip(state, before, strict=True)
        )
        replayed.append(request._replace(u=u, v=v, sigma=sigma))
    return [list(each) for each in normalize_eagerly(replayed, apart=True)]


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


def _write(buffers: list[Tensor], values: list[Tensor], tells: bool) -> None:
    if recomputation.is_running():
        return  # what an earlier forward took
    # A checkpoint inside of compiled code recomputes from the buffers as they then are. Where
    # accesses iterate that is wrong once another has, and their versions let autograd say so.
    torch._foreach_copy_(buffers if tells else [buffer.data for buffer in buffers], values)


torch.library.impl(WRITE, _BELOW_AUTOGRAD, _write)
torch.library.register_fake(WRITE, lambda buffers, values, tells: None)


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
    ops = operations(weights[0], backend)
    places = [
        in_matrix_layout(weight.detach(), dim) for weight, dim in zip(weights, dims, strict=True)
    ]
    estimates = [
        Estimate(dense, dense._version, view, dim, u, v, sigma)
        for (dense, view), dim, u, v, sigma in zip(places, dims, us, vs, sigmas, strict=True)
    ]
    with torch.no_grad():
        return list(rescale_backward(ops, estimates, grads))


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
