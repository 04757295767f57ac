"""The launches for the same weights, forward after forward: set up once, down to the addresses."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor

from ..ops.calls import Call
from ..ops.rounds import Round, gradient_calls
from . import launch
from .grouping import fits_table
from .parts import split, split_states
from .plan import plan_of
from .table import GRAD, OUT, SIGMA, Rows, U, V
from .together import Memory, is_live, kind_of, launch_all, layer_of
from .together_backward import gradient_rows, launch_gradients, rescale_backward

_KEPT = 16  # tables of gradients, of those members that a backward has reached


def rounds(calls: Sequence[Call]) -> Rounds | None:
    """As :class:`snorm_triton.ops.backend.Backend` says: of calls that share their launches."""
    kinds = {kind_of(call) for call in calls}
    return Rounds(calls) if len(calls) > 1 and len(kinds) == 1 and None not in kinds else None


class Rounds:
    """As :class:`snorm_triton.ops.rounds.Rounds` says."""

    def __init__(self, calls: Sequence[Call]) -> None:
        weight, _, u, _, _, dtype, _ = calls[0]
        self.calls = calls
        layers = tuple(map(layer_of, calls))
        self.plan = plan_of(layers, weight.device, dtype.itemsize, u.element_size())
        self.shapes = [(call.weight.shape, call.weight.stride()) for call in calls]
        self.views = [call.view for call in calls]
        self._rows: dict[tuple[int, ...], Rows] = {}  # of the gradients of such members

    def __call__(self) -> tuple[list[Tensor], Round]:
        weight, _, u, _, step, dtype, _ = self.calls[0]
        table, _, sizes = self.plan
        out = weight.new_empty(sizes.out, dtype=dtype)
        state = u.new_empty(sizes.state)
        memory = Memory(table, out, state, out, u.new_empty(sizes.scratch))
        launch_all(memory, self.calls[0])
        weights = split(out, sizes.outs, self.shapes)
        states = partial(split_states, state, self.views)
        return weights, Round(state, states, is_live(step))

    def gradients(
        self, made: Round, members: Sequence[int], grads: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        weights = [self.calls[i].weight for i in members]
        state = cast(Tensor, made.memory)
        alike = all(grad.dtype == grads[0].dtype for grad in grads) and fits_table(*grads)
        if len(members) < 2 or not alike or launch.is_capturing(state.device):
            calls = gradient_calls(self.calls, made, members, grads)
            return [each.weight for each in rescale_backward(calls)]
        rows = self._rows_of(tuple(members)).copy()  # another thread may fill its own
        outs = list(map(torch.empty_like, weights))
        base, itemsize = state.data_ptr(), state.element_size()
        places = [self.plan.places[i] for i in members]
        rows.put(U.value, [base + place.u * itemsize for place in places])
        rows.put(V.value, [base + place.v * itemsize for place in places])
        rows.put(SIGMA.value, [base + place.sigma * itemsize for place in places])
        rows.put(OUT.value, list(map(Tensor.data_ptr, outs)))
        rows.put(GRAD.value, list(map(Tensor.data_ptr, grads)))
        rescaling = self.calls[0].rescaling
        launch_gradients(rows.on(state.device), grads[0], weights[0], state, rescaling)
        return outs

    def _rows_of(self, members: tuple[int, ...]) -> Rows:
        """The table of their gradients but for what differs from one backward to the next."""
        rows = self._rows.get(members)
        if rows is None:
            if len(self._rows) == _KEPT:
                self._rows.clear()
            weights = [self.calls[i].weight for i in members]
            rows = gradient_rows(weights, [self.views[i] for i in members])
            self._rows[members] = rows
        return rows
