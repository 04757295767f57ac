"""The launches for the same weights, forward after forward: set up once, down to the addresses."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor

from ..ops.calls import Call
from ..ops.rounds import Round, RoundGradients
from . import launch
from .grouping import fits_table
from .parts import Layout, split, split_states
from .plan import Place, plan_of
from .table import GRAD, OUT, SIGMA, KeptRows, Rows, U, V
from .together import is_live, kind_of, launches_of, layer_of
from .together_backward import gradient_rows, rescale_backward
from .together_backward import launches_of as gradient_launches
from .together_backward import memory_of as gradient_memory


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
        self.launches = launches_of(self.plan.table, calls[0])
        self.layouts = [Layout.kept(call.weight) for call in calls]
        self.views = [call.view for call in calls]

    def __call__(self) -> tuple[list[Tensor], Round]:
        weight, _, u, _, step, dtype, _ = self.calls[0]
        sizes = self.plan.sizes
        out = weight.new_empty(sizes.out, dtype=dtype)
        state = u.new_empty(sizes.state)
        memory = {"out_ptr": out, "state_ptr": state, "partial_ptr": out}
        memory["scratch_ptr"] = u.new_empty(sizes.scratch)
        launch.in_order(self.launches, memory)
        weights = split(out, sizes.outs, self.layouts)
        states = partial(split_states, state, self.views)
        return weights, Round(state, states, is_live(step))

    def gradients_of(self, members: Sequence[int]) -> RoundGradients:
        return Gradients(self.calls, members, [self.plan.places[i] for i in members])


class Gradients(RoundGradients):
    """As :class:`snorm_triton.ops.rounds.RoundGradients` says, in two launches."""

    def __init__(
        self, calls: Sequence[Call], members: Sequence[int], places: Sequence[Place]
    ) -> None:
        super().__init__(calls, members, rescale_backward)
        self._places = places
        self._rows = KeptRows()

    def __call__(
        self, made: Round, used: Sequence[int], grads: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        calls = [self.calls[i] for i in used]
        state = cast(Tensor, made.memory)
        alike = all(grad.dtype == grads[0].dtype for grad in grads) and fits_table(*grads)
        if len(used) < 2 or not alike or launch.is_capturing(state.device):
            return super().__call__(made, used, grads)
        weights, views = [call.weight for call in calls], [call.view for call in calls]
        dtype, rescaling = grads[0].dtype, calls[0].rescaling

        def make() -> tuple[Rows, Sequence[launch.Launch]]:
            rows = gradient_rows(weights, views)
            return rows, gradient_launches(rows, dtype, weights[0], rescaling)

        rows, launches = self._rows.of((*used, dtype), make)
        outs = list(map(torch.empty_like, weights))
        base, itemsize = state.data_ptr(), state.element_size()
        places = [self._places[i] for i in used]
        rows.put(U.value, [base + place.u * itemsize for place in places])
        rows.put(V.value, [base + place.v * itemsize for place in places])
        rows.put(SIGMA.value, [base + place.sigma * itemsize for place in places])
        rows.put(OUT.value, list(map(Tensor.data_ptr, outs)))
        rows.put(GRAD.value, list(map(Tensor.data_ptr, grads)))
        launch.in_order(launches, gradient_memory(rows.on(state.device), state))
        return outs
