"""The live u, v and sigma of a parametrization, and what an access writes into them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..torch_internals import functorch
from ..torch_internals.autograd import foreach_copy_, in_backward
from ..torch_internals.tracing import is_exporting
from .calls import Access, Iterate, Normalized

WRITE = "snorm_triton::write"


def write(accesses: Sequence[Access], outputs: Sequence[Normalized]) -> None:
    """Overwrite the live state of each access that iterated, whatever way torch runs us.

    The one place where it is written, but for the backends that do it along with the rest.
    """
    told: tuple[list[Tensor], list[Tensor]] = ([], [])
    untold: tuple[list[Tensor], list[Tensor]] = ([], [])
    for access, output in zip(accesses, outputs, strict=True):
        step = access.step
        if not isinstance(step, Iterate) or step.live is None or output.is_written:
            continue
        # A checkpoint inside of compiled code recomputes from the buffers as they then are. Where
        # accesses iterate that is wrong once another has, and their versions let autograd say so.
        buffers, values = told if step.due is None else untold
        buffers += step.live
        sigma = output.sigma.detach() if output.sigma.requires_grad else output.sigma
        values += (output.u, output.v, sigma.abs() if sigma.is_complex() else sigma)
        if step.due is not None:
            buffers.append(step.due)
            values.append(torch.zeros_like(step.due))
    for tells, (buffers, values) in ((True, told), (False, untold)):
        if buffers:
            overwrite(buffers, values, tells)


def overwrite(buffers: list[Tensor], values: list[Tensor], tells: bool = True) -> None:
    """Copy each value, without a graph, into its buffer; ``tells``: so that its version tells."""
    if functorch.active():
        functorch.write(buffers, values)
    elif torch.compiler.is_compiling() and not is_exporting():
        torch.ops.snorm_triton.write(buffers, [value.detach() for value in values], tells)
    else:
        foreach_copy_(buffers, values)


def _write(buffers: list[Tensor], values: list[Tensor], tells: bool) -> None:
    if not in_backward():  # where an earlier forward is computed anew
        foreach_copy_(buffers if tells else [buffer.data for buffer in buffers], values)


torch.library.define(
    WRITE,
    "(Tensor(a!)[] buffers, Tensor[] values, bool tells) -> ()",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout),
)
torch.library.impl(WRITE, "CompositeExplicitAutograd", _write)
torch.library.register_fake(WRITE, lambda buffers, values, tells: None)
