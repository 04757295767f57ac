"""The launches that scale the rows of the same weights, forward after forward, set up once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from ..ops.row_scaling import RowScaling, RowScalingGradient
from . import launch
from .grouping import fits_table
from .parts import Layout, split
from .row_plan import Layer, plan_of
from .table import GRAD, NEW_U, OUT, SIGMA, KeptRows, Rows
from .weight_norm import norms_dtype
from .weight_norm_together import (
    gradient_launch,
    gradient_rows,
    kind_of,
    launch_of,
    memory_of,
    scale_rows_backward,
)


def row_rounds(calls: Sequence[RowScaling]) -> RowRounds | None:
    """As :class:`snorm_triton.ops.backend.Backend` says: of calls that share their launch."""
    kinds = {kind_of(call) for call in calls}
    return RowRounds(calls) if len(calls) > 1 and len(kinds) == 1 and None not in kinds else None


class RowRounds:
    """As :class:`snorm_triton.ops.row_scaling.RowRounds` says."""

    def __init__(self, calls: Sequence[RowScaling]) -> None:
        weight = calls[0].weight
        self._calls = calls
        self._itemsize = norms_dtype(weight).itemsize
        layers = [Layer(v.data_ptr(), g.data_ptr(), view) for v, view, g, _ in calls]
        self._plan = plan_of(tuple(layers), weight.device, self._itemsize)
        self._launch = launch_of(self._plan, calls[0])
        self._layouts = [Layout.kept(call.weight) for call in calls]
        self._starts = list(accumulate((call.view.M for call in calls), initial=0))

    def __call__(self) -> tuple[list[Tensor], Tensor]:
        memory = memory_of(self._plan, self._calls[0])
        launch.in_order([self._launch], memory)
        return split(memory["out_ptr"], self._plan.outs, self._layouts), memory["norms_ptr"]

    def gradients_of(self, members: Sequence[int]) -> RowGradients:
        starts = [self._starts[i] for i in members]
        return RowGradients([self._calls[i] for i in members], starts, self._itemsize)


class RowGradients:
    """As :class:`snorm_triton.ops.row_scaling.RowGradients` says."""

    def __init__(self, calls: Sequence[RowScaling], starts: Sequence[int], itemsize: int) -> None:
        self.calls = calls
        self._starts = starts  # of the norms of each
        self._itemsize = itemsize
        self._rows = KeptRows()

    def norms_of(self, i: int, norms: Tensor) -> Tensor:
        return norms.narrow(0, self._starts[i], self.calls[i].view.M)

    def __call__(
        self, norms: Tensor, used: Sequence[int], grads: Sequence[Tensor]
    ) -> Sequence[tuple[Tensor, Tensor]]:
        calls = [self.calls[i] for i in used]
        alike = all(grad.dtype == grads[0].dtype for grad in grads) and fits_table(*grads)
        if len(used) < 2 or not alike or launch.is_capturing(norms.device):
            return scale_rows_backward(
                [
                    RowScalingGradient(grad, v, view, g, self.norms_of(i, norms))
                    for i, grad, (v, view, g, _) in zip(used, grads, calls, strict=True)
                ]
            )
        dtype = grads[0].dtype

        def make() -> tuple[Rows, Sequence[launch.Launch]]:
            rows = gradient_rows(calls, self._itemsize)
            return rows, [gradient_launch(rows, dtype, calls[0], norms.dtype)]

        rows, launches = self._rows.of((*used, dtype), make)
        of_weights = [torch.empty_like(call.weight) for call in calls]
        of_gs = [torch.empty_like(call.g) for call in calls]
        base = norms.data_ptr()
        rows.put(SIGMA.value, [base + self._starts[i] * self._itemsize for i in used])
        rows.put(OUT.value, list(map(Tensor.data_ptr, of_weights)))
        rows.put(GRAD.value, list(map(Tensor.data_ptr, grads)))
        rows.put(NEW_U.value, list(map(Tensor.data_ptr, of_gs)))
        memory = {"table_ptr": rows.on(norms.device).fields, "norms_ptr": norms}
        launch.in_order(launches, memory)
        return list(zip(of_weights, of_gs, strict=True))
