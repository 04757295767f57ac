"""The power iteration on a convolution as an operator that torch.compile does not open.

Whether it is due, or recomputes what a forward took, it sees as it runs. Sigma and W / sigma are
left to the compiler.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...torch_internals.autograd import in_backward
from .. import recomputation
from ..calls import Evaluate, Iterate, State, Step
from ..convolution_geometry import Geometry
from ..convolution_iteration import estimate_of_convolution
from ..state import BELOW_AUTOGRAD, TAGS

ITERATE = "snorm_triton::iterate_convolution"

torch.library.define(
    ITERATE,
    "(Tensor weight, Tensor u, Tensor v, Tensor sigma, Tensor? due, SymInt n, float eps, "
    "bool keeps, SymInt[] geometry, str padding_mode) -> (Tensor, Tensor, Tensor)",
    tags=TAGS,
)


def iterate(geometry: Geometry, weight: Tensor, u: Tensor, v: Tensor, step: Step) -> State:
    """What compiled code takes; ``weight`` without a graph, in the dtype of u and v."""
    live = step.live if isinstance(step, Iterate) else None
    sigma = u.new_zeros(()) if live is None else live[2].to(u.dtype)
    n, eps = (step.n, 1.0) if isinstance(step, Iterate) else (0, _eps(step))
    due = step.due if isinstance(step, Iterate) else None
    return State(
        *torch.ops.snorm_triton.iterate_convolution(
            weight,
            u,
            v,
            sigma,
            due,
            n,
            eps,
            live is not None,
            _as_numbers(geometry),
            geometry.padding_mode,
        )
    )


def _eps(step: Step) -> float:
    assert isinstance(step, Evaluate)
    return step.eps


def _iterate(
    weight: Tensor,
    u: Tensor,
    v: Tensor,
    sigma: Tensor,
    due: Tensor | None,
    n: int,
    eps: float,
    keeps: bool,
    geometry: list[int],
    padding_mode: str,
) -> tuple[Tensor, Tensor, Tensor]:
    state = State(u, v, sigma)
    step: Step = Iterate(n) if n else Evaluate(eps)
    if not keeps:
        return estimate_of_convolution(_geometry(geometry, padding_mode), weight, u, v, step)
    checkpoints, owner = recomputation.around(), recomputation.owner_of(u)
    on_host = due is None or due.device.type == "cpu"
    is_due = due is None or not on_host or due.item() != 0
    state, step = recomputation.at_run_time(state, step, checkpoints, owner, is_due)
    of = _geometry(geometry, padding_mode)
    taken = estimate_of_convolution(of, weight, state.u, state.v, step)
    if due is not None and not on_host and not in_backward():
        pairs = zip(taken, (u, v, sigma), strict=True)
        taken = State(*(torch.where(due > 0, new, old) for new, old in pairs))
    if checkpoints:
        recomputation.keep(checkpoints, owner, State(*(x.clone() for x in taken)))
    return taken


def _fake_iterate(
    weight: Tensor, u: Tensor, v: Tensor, sigma: Tensor, *_: object
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(u), torch.empty_like(v), torch.empty_like(sigma)


def _as_numbers(geometry: Geometry) -> list[int]:
    g = geometry
    ends = [end for pair in g.padding for end in pair]
    lists = (g.input_shape, g.stride, ends, g.dilation, g.output_padding)
    return [*(n for each in lists for n in each), g.groups, int(g.transposed)]


def _geometry(numbers: list[int], padding_mode: str) -> Geometry:
    d = (len(numbers) - 3) // 6  # dimensions of space
    given = iter(numbers)

    def sizes(n: int) -> tuple[int, ...]:
        return tuple(next(given) for _ in range(n))

    shape, stride, ends = sizes(d + 1), sizes(d), sizes(2 * d)
    padding = tuple(zip(ends[::2], ends[1::2], strict=True))
    dilation, output_padding, (groups, transposed) = sizes(d), sizes(d), sizes(2)
    return Geometry(
        shape, stride, padding, dilation, output_padding, groups, padding_mode, bool(transposed)
    )


torch.library.impl(ITERATE, BELOW_AUTOGRAD, _iterate)
torch.library.register_fake(ITERATE, _fake_iterate)
