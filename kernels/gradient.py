"""The launches of the gradient of W / sigma: two, or one where a program holds all of W."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops.matrix_view import MatrixView
from . import launch
from .config import DOT_BLOCK, DOT_PROGRAMS, apply_tile, ceil_div, hidden_factor, small_tile, warps
from .rescale_backward import grad_apply, grad_dot
from .small import rescale_backward_small


def rescale_backward(
    grad: Tensor, weight: Tensor, view: MatrixView, u: Tensor, v: Tensor, sigma: Tensor
) -> Tensor:
    """As :class:`snorm_triton.ops.backend.Backend` says, of one weight."""
    out = torch.empty_like(weight)
    inputs: dict[str, Any] = {
        "grad_ptr": grad,
        "u_ptr": u,
        "v_ptr": v,
        "sigma_ptr": sigma,
        "out_ptr": out,
        "C": view.C,
    }
    with launch.on_device_of(weight):
        small = small_tile(view.M, view.N, u.element_size(), launch.warp_size(u.device))
        if small is None:
            _in_two_launches(weight, view, u, inputs)
        else:
            launch.run(
                rescale_backward_small,
                1,
                **inputs,
                weight_ptr=weight,
                M=view.M,
                N=view.N,
                **launch.layout_of(view, view.N),
                BLOCK_M=small.BLOCK_M,
                BLOCK_N=small.BLOCK_N,
                num_warps=small.num_warps,
                **launch.ROUNDING,
            )
    return out


def _in_two_launches(weight: Tensor, view: MatrixView, u: Tensor, inputs: dict[str, Any]) -> None:
    numel, lanes, itemsize = weight.numel(), launch.warp_size(u.device), u.element_size()
    programs = min(ceil_div(numel, DOT_BLOCK), DOT_PROGRAMS)
    partial = u.new_empty(programs)
    rows, columns = (view.M, view.Q) if view.P == 1 else (view.P, view.M * view.Q)
    tile = apply_tile(rows, columns, itemsize, lanes)
    launch.run(
        grad_dot,
        programs,
        grad_ptr=inputs["grad_ptr"],
        weight_ptr=weight,
        partial_ptr=partial,
        numel=numel,
        FACTOR=hidden_factor(numel),
        BLOCK=DOT_BLOCK,
        num_warps=warps(DOT_BLOCK, itemsize, lanes) * 2,
        **launch.ROUNDING,
    )
    launch.run(
        grad_apply,
        tile.programs,
        **inputs,
        partial_ptr=partial,
        programs=programs,
        rows=rows,
        columns=columns,
        **launch.layout_of(view, columns),
        PROGRAMS=DOT_PROGRAMS,
        R=tile.R,
        BLOCK_N=tile.BLOCK_N,
        num_warps=tile.num_warps,
        **launch.ROUNDING,
    )
