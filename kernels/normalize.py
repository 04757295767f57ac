"""W / sigma with its u, v and sigma: three launches, or one where a program holds all of W."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..ops.calls import Evaluate, Iterate, Normalized, Replay, State, Step
from ..ops.matrix_view import MatrixView
from ..ops.rescaling import PLAIN, Rescaling
from . import launch
from .config import (
    SHARE_COLUMNS,
    SHARE_ROWS,
    VECTOR_BLOCK,
    RowTile,
    ceil_div,
    chunk_tile,
    finish_block,
    hidden_factor,
    holds_whole_rows,
    row_tile,
    small_tile,
    warps,
)
from .estimate import estimate_parts, finish_estimate
from .finish import finish_iteration, reduce_partials
from .power_step import power_chunked, power_rows
from .rescale import replay
from .small import normalize_small

_FRESH = "new_u_ptr", "new_v_ptr", "new_sigma_ptr"
_LIVE = "live_u_ptr", "live_v_ptr", "live_sigma_ptr"


def normalize(
    weight: Tensor,
    view: MatrixView,
    u: Tensor,
    v: Tensor,
    step: Step,
    dtype: torch.dtype,
    rescaling: Rescaling = PLAIN,
) -> Normalized:
    """W / sigma of one weight, as :class:`snorm_triton.ops.backend.Backend` says."""
    if isinstance(step, Replay):
        return replay(weight, view, State(u, v, step.sigma), dtype, rescaling)
    times, eps = (step.n, 0.0) if isinstance(step, Iterate) else (0, step.eps)
    dtypes = weight.dtype, u.dtype, dtype
    bound, scale, learned = rescaling
    kind = Kind(view, weight.device, *dtypes, times, eps, bound, scale, learned is not None)
    return _normalization(kind)(weight, u, v, step, learned)


class Kind(NamedTuple):
    """Weights that are normalized in the same launches."""

    view: MatrixView
    device: torch.device
    dtype: torch.dtype
    state_dtype: torch.dtype
    out_dtype: torch.dtype
    times: int  # iterations; 0 of an evaluation
    eps: float
    bound: float
    scale: float
    learns: bool  # a scale


class Normalization:
    """The launches that normalize weights of one kind."""

    def __init__(self, kind: Kind) -> None:
        view, device, self._dtype, state_dtype, self._out_dtype, times, eps, *numbers = kind
        bound, scale, learns = numbers
        self._view = view
        self._device, self._lanes = device, launch.warp_size(device)
        self._itemsize: int = state_dtype.itemsize
        self._sizes = {"M": view.M, "N": view.N, "C": view.C}
        self._numbers: dict[str, Any] = {"BOUND": bound, "SCALE": scale}
        self._learned = ("scale_ptr",) if learns else ()
        if not learns:
            self._numbers["scale_ptr"] = None
        self._scratch = 0  # elements
        self._shares = 0  # of s, where they have no room in the output
        self._times = max(1, times)
        self._launches: list[launch.Launch] = []  # of each iteration but the last
        self._last: list[launch.Launch] = []
        small = small_tile(view.M, view.N, self._itemsize, self._lanes)
        if small is not None:
            self._times = 1
            self._last = [self._in_one(times, eps, small._asdict())]
        elif times:
            self._iterate()
        else:
            self._estimate(eps)

    def __call__(
        self, weight: Tensor, u: Tensor, v: Tensor, step: Iterate | Evaluate, learned: Tensor | None
    ) -> Normalized:
        """Launch them."""
        out = torch.empty_like(weight, dtype=self._out_dtype)
        fresh = torch.empty_like(u), torch.empty_like(v), u.new_empty(())
        live = step.live if isinstance(step, Iterate) else None
        memory = {"weight_ptr": weight, "out_ptr": out, "u_ptr": u, "v_ptr": v}
        memory |= zip(_FRESH, fresh, strict=True)
        # The live state gets the same values; where there is none the fresh is written twice.
        memory |= zip(_LIVE, live or fresh, strict=True)
        if learned is not None:
            memory["scale_ptr"] = learned
        if self._scratch:
            memory["scratch_ptr"] = memory["parts_ptr"] = u.new_empty(self._scratch)
            # The shares of s lie in the output's memory: it is written once they have been read.
            memory["partial_ptr"] = u.new_empty(self._shares) if self._shares else out
        for _ in range(self._times - 1):
            launch.in_order(self._launches, memory)
            memory["u_ptr"], memory["v_ptr"], _ = fresh
        launch.in_order(self._last, memory)
        return Normalized(out, *fresh, live is not None)

    def _in_one(self, n: int, eps: float, tile: dict[str, int]) -> launch.Launch:
        return launch.Launch(
            normalize_small,
            1,
            ("weight_ptr", "out_ptr", "u_ptr", "v_ptr", *_FRESH, *_LIVE, *self._learned),
            **self._sizes,
            **self._numbers,
            n_power_iterations=n,
            eps=eps,
            **launch.layout_of(self._view, self._view.N),
            ITERATES=n > 0,
            **tile,
            **launch.ROUNDING,
        )

    def _estimate(self, eps: float) -> None:
        """Two launches."""
        M, N, _ = self._sizes.values()
        numel, block = M * N, finish_block(self._itemsize)
        tile = chunk_tile(M, N, self._view.Q, self._itemsize, self._lanes)
        self._scratch = 3 * tile.programs
        parts = launch.Launch(
            estimate_parts,
            tile.programs,
            ("weight_ptr", "u_ptr", "v_ptr", "parts_ptr"),
            **self._sizes,
            **launch.layout_of(self._view, N),
            R=tile.R,
            BLOCK_N=tile.BLOCK_N,
            VECTOR_BLOCK=VECTOR_BLOCK,
            num_warps=tile.num_warps,
            **launch.ROUNDING,
        )
        finish = launch.Launch(
            finish_estimate,
            ceil_div(numel, block),
            ("weight_ptr", "out_ptr", "u_ptr", "v_ptr", "parts_ptr", *_FRESH, *self._learned),
            **self._numbers,
            programs=tile.programs,
            numel=numel,
            M=M,
            N=N,
            eps=eps,
            FACTOR=hidden_factor(numel),
            BLOCK=block,
            VECTOR_BLOCK=VECTOR_BLOCK,
            num_warps=warps(block, self._itemsize, self._lanes),
            **launch.ROUNDING,
        )
        self._last = [parts, finish]

    def _iterate(self) -> None:
        """Three launches each iteration; the last writes the normalized weight too."""
        M, N, _ = self._sizes.values()
        capacity = M * self._out_dtype.itemsize // self._itemsize  # rows of N that the output holds
        power, tile, staged = self._power_kernel(capacity)
        programs, column_blocks = tile.programs, ceil_div(N, SHARE_COLUMNS)
        self._shares = programs * N if programs > capacity else 0
        self._scratch = M + N + 2 * (programs + column_blocks)
        products = launch.Launch(
            power,
            programs,
            ("weight_ptr", "v_ptr", "partial_ptr", "scratch_ptr"),
            **self._sizes,
            **launch.layout_of(self._view, N),
            R=tile.R,
            BLOCK_N=tile.BLOCK_N,
            num_warps=tile.num_warps,
            **staged,
            **launch.ROUNDING,
        )
        reduce = launch.Launch(
            reduce_partials,
            column_blocks,
            ("partial_ptr", "scratch_ptr"),
            M=M,
            N=N,
            programs=programs,
            FACTOR=hidden_factor(N),
            BLOCK=SHARE_COLUMNS,
            ROWS=SHARE_ROWS,
            num_warps=warps(SHARE_ROWS * SHARE_COLUMNS, self._itemsize, self._lanes),
            **launch.ROUNDING,
        )
        self._launches = [products, reduce, self._finish(programs, rescales=False)]
        self._last = [products, reduce, self._finish(programs, rescales=True)]

    def _power_kernel(self, capacity: int) -> tuple[Any, RowTile, dict[str, int]]:
        """The kernel of the power step, its tile, and what it takes beside."""
        view, itemsize, lanes = self._view, self._itemsize, self._lanes
        if not holds_whole_rows(view.P, view.Q, view.K, itemsize):
            return power_chunked, chunk_tile(view.M, view.N, view.Q, itemsize, lanes), {}
        limits = launch.shared_memory(self._device), max(1, capacity)
        tile = row_tile(view.M, view.N, itemsize, self._dtype.itemsize, lanes, *limits)
        return power_rows, tile, {"STAGES": tile.STAGES}

    def _finish(self, programs: int, rescales: bool) -> launch.Launch:
        view = self._view
        elements, block = max(view.M, view.N), VECTOR_BLOCK
        if rescales:
            elements, block = view.M * view.N, finish_block(self._itemsize)
        inputs = "weight_ptr", "out_ptr", "u_ptr", "v_ptr", "scratch_ptr"
        return launch.Launch(
            finish_iteration,
            ceil_div(elements, block),
            (*inputs, *_FRESH, *_LIVE, *self._learned),
            **self._sizes,
            **self._numbers,
            programs=programs,
            numel=view.M * view.N,
            FACTOR=hidden_factor(view.M * view.N),
            K=view.K,
            RESCALES=rescales,
            BLOCK=block,
            VECTOR_BLOCK=VECTOR_BLOCK,
            SHARE_COLUMNS=SHARE_COLUMNS,
            num_warps=warps(block, self._itemsize, self._lanes),
            **launch.ROUNDING,
        )


_normalization = launch.once_for_each(Normalization)
