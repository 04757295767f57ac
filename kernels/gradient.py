"""The launches of the gradient of W / sigma: two, or one where a program holds all of W."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..ops.calls import Gradients
from ..ops.matrix_view import MatrixView
from ..ops.rescaling import PLAIN, Rescaling
from . import launch
from .config import DOT_BLOCK, DOT_PROGRAMS, apply_tile, ceil_div, hidden_factor, small_tile, warps
from .rescale_backward import grad_apply, grad_dot
from .small import rescale_backward_small

_INPUTS = "grad_ptr", "u_ptr", "v_ptr", "sigma_ptr", "out_ptr"


def rescale_backward(
    grad: Tensor,
    weight: Tensor,
    view: MatrixView,
    u: Tensor,
    v: Tensor,
    sigma: Tensor,
    rescaling: Rescaling = PLAIN,
) -> Gradients:
    """As :class:`snorm_triton.ops.backend.Backend` says, of one weight."""
    bound, scale, learned = rescaling
    dtypes = grad.dtype, weight.dtype, u.dtype
    kind = Kind(view, weight.device, *dtypes, bound, scale, learned is not None)
    return _gradient(kind)(grad, weight, u, v, sigma, learned)


class Kind(NamedTuple):
    """Weights whose gradients are computed in the same launches."""

    view: MatrixView
    device: torch.device
    grad_dtype: torch.dtype
    dtype: torch.dtype
    state_dtype: torch.dtype
    bound: float
    scale: float
    learns: bool  # a scale


class Gradient:
    """The launches for the gradients of weights of one kind."""

    def __init__(self, kind: Kind) -> None:
        self._view = kind.view
        self._itemsize, self._lanes = kind.state_dtype.itemsize, launch.warp_size(kind.device)
        self._numbers: dict[str, Any] = {"BOUND": kind.bound, "SCALE": kind.scale}
        self._learned: tuple[str, ...] = ()
        if kind.learns:
            self._learned = "scale_ptr", "grad_scale_ptr"
        else:
            self._numbers |= {"scale_ptr": None, "grad_scale_ptr": None}
        self._parts = 0  # elements: of the inner product
        small = small_tile(self._view.M, self._view.N, self._itemsize, self._lanes)
        self._launches = self._two() if small is None else [self._one(small._asdict())]

    def __call__(
        self,
        grad: Tensor,
        weight: Tensor,
        u: Tensor,
        v: Tensor,
        sigma: Tensor,
        learned: Tensor | None,
    ) -> Gradients:
        """Launch them."""
        out, grad_scale = torch.empty_like(weight), None
        memory = {"grad_ptr": grad, "weight_ptr": weight, "u_ptr": u, "v_ptr": v}
        memory |= {"sigma_ptr": sigma, "out_ptr": out}
        if self._parts:
            memory["partial_ptr"] = u.new_empty(self._parts)
        if learned is not None:
            grad_scale = torch.empty_like(learned)
            memory |= {"scale_ptr": learned, "grad_scale_ptr": grad_scale}
        launch.in_order(self._launches, memory)
        return Gradients(out, grad_scale)

    def _one(self, tile: dict[str, int]) -> launch.Launch:
        view = self._view
        return launch.Launch(
            rescale_backward_small,
            1,
            (*_INPUTS, "weight_ptr", *self._learned),
            **self._numbers,
            M=view.M,
            N=view.N,
            C=view.C,
            **launch.layout_of(view, view.N),
            **tile,
            **launch.ROUNDING,
        )

    def _two(self) -> list[launch.Launch]:
        view, numel = self._view, self._view.M * self._view.N
        programs = self._parts = min(ceil_div(numel, DOT_BLOCK), DOT_PROGRAMS)
        rows, columns = (view.M, view.Q) if view.P == 1 else (view.P, view.M * view.Q)
        tile = apply_tile(rows, columns, self._itemsize, self._lanes)
        dot = launch.Launch(
            grad_dot,
            programs,
            ("grad_ptr", "weight_ptr", "partial_ptr"),
            numel=numel,
            FACTOR=hidden_factor(numel),
            BLOCK=DOT_BLOCK,
            num_warps=warps(DOT_BLOCK, self._itemsize, self._lanes) * 2,
            **launch.ROUNDING,
        )
        apply = launch.Launch(
            grad_apply,
            tile.programs,
            (*_INPUTS, "partial_ptr", *self._learned),
            **self._numbers,
            C=view.C,
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
        return [dot, apply]


_gradient = launch.once_for_each(Gradient)
