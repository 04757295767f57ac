"""Whether an access iterates, replays or evaluates: decided here alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..functional import state_dtype
from ..ops import recomputation
from ..ops.calls import Evaluate, Iterate, Live, Replay, Step
from ..torch_internals.autograd import backward_id
from . import updates


def choose(
    parametrization: Any, weight: Tensor, live: Live, checkpoints: recomputation.Checkpoints | None
) -> tuple[Live, Step]:
    """The state that an access to ``weight`` starts from, and its step.

    Args:
        parametrization: the :class:`.spectral_norm.SpectralNormParametrization` of the weight.
        weight: as it is now.
        live: its buffers, which the step overwrites or leaves alone.
        checkpoints: those around the access; inside of a recomputation one has kept its state.
            None in compiled code.
    """
    options = parametrization.options
    if checkpoints:
        kept = recomputation.replay(checkpoints, parametrization.owner)
        if kept is not None:
            return kept, Replay(kept.sigma)
    if not parametrization.iterates:
        return live, Evaluate(options.eps)
    if checkpoints is None:  # whether it is due, or recomputed, it will see as it runs
        due = parametrization._buffers.get("_due")
        return live, Iterate(options.n_power_iterations, live, due)
    if backward_id() == -1:
        if options.power_iter == "access" or updates.is_due(parametrization, weight):
            return live, Iterate(options.n_power_iterations, live)
        if not updates.notices_all(parametrization):
            return live, Evaluate(options.eps)
    return live, Replay(live[2].to(state_dtype(weight)))
