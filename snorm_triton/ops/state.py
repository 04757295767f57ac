"""The live u, v and sigma of a parametrization, and what an access writes into them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..torch_internals import functorch
from ..torch_internals.autograd import foreach_copy_, in_backward
from ..torch_internals.tracing import is_exporting
from .calls import Access, Iterate, Normalized

WRITE = "snorm_triton::write"
# Of every operator of ours, on every device.
BELOW_AUTOGRAD = "CompositeExplicitAutograd"
# The compiler need not copy a weight back that it has laid out anew, such as for a convolution.
TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout)


def write(
    accesses: Sequence[Access],
    outputs: Sequence[Normalized],
    copy: Callable[[list[Tensor], list[Tensor]], object] = foreach_copy_,
) -> None:
    """Overwrite by ``copy`` the live state of each access that iterated.

    The one place where it is written, but for the backends that do it along with the rest, and for
    :func:`.modes.eager.repeated`, for which all this has been decided.
    """
    buffers: list[Tensor] = []
    values: list[Tensor] = []
    for access, (_, u, v, sigma, is_written) in zip(accesses, outputs, strict=True):
        step = access.step
        if type(step) is not Iterate or step.live is None or is_written:
            continue
        if sigma.requires_grad:
            sigma = sigma.detach()
        buffers += step.live
        values += (u, v, sigma.abs() if sigma.is_complex() else sigma)
        if step.due is not None:
            buffers.append(step.due)
            values.append(torch.zeros_like(step.due))
    if buffers:
        copy(buffers, values)


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


torch.library.define(WRITE, "(Tensor(a!)[] buffers, Tensor[] values, bool tells) -> ()", tags=TAGS)
torch.library.impl(WRITE, BELOW_AUTOGRAD, _write)
torch.library.register_fake(WRITE, lambda buffers, values, tells: None)
