"""Policy "update": one power iteration for each step of an optimizer or other change of a weight.

A weight's version counter does not tell of all: fused optimizers, ``.data`` and FSDP2 leave it as
it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast
from weakref import WeakSet, ref

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..ops import autograd
from ..ops.dispatch import is_sharded
from ..ops.fingerprint import fingerprint
from ..ops.state import overwrite
from ..torch_internals import functorch
from ..torch_internals.autograd import foreach_add_
from ..torch_internals.storage import memory_of, version

Memories = tuple[Any, Any]  # of a weight and of u

steps = 0  # of any optimizer, so far


class Follower(Protocol):
    """Something that holds a flag, of shape () and on any device, to be raised at every step."""

    @property
    def due(self) -> Tensor: ...


_followers: WeakSet[Any] = WeakSet()


def follow(follower: Follower) -> None:
    """Raise the flag of ``follower`` after every step, as long as it lives."""
    _followers.add(follower)


@torch.no_grad()
def _count_step(optimizer: Any, args: Any, kwargs: Any) -> None:
    global steps
    steps += 1
    flags: dict[torch.device, list[Tensor]] = {}
    for follower in list(_followers):
        due = follower.due
        # Of a model copied in inference mode, which is not to be trained, or without memory yet.
        if not (due.is_inference() or due.is_meta):
            flags.setdefault(due.device, []).append(due)
    for alike in flags.values():
        foreach_add_(alike, 1)


register_optimizer_step_post_hook(_count_step)


def is_due(parametrization: Any, weight: Tensor, memories: Memories | None = None) -> bool:
    """Whether the weight may have changed since the last iteration.

    ``memories``: what the caller has found the weight and u in, as they were when
    :func:`memories_of` told them.
    """
    last = parametrization._updated_for
    if memories is not None and last is not None and len(last) == 7 and last[0] == steps:
        mine, of_u = memories
        if last[2] is mine and last[5] is of_u:
            return bool(last != _now_there(weight, memories))
    due: Tensor = parametrization.due
    now = _now(parametrization, weight)
    if last is not None and last[0] != steps and due.device.type == "cpu":
        # Compiled code has iterated since that step, if its flag is down.
        return bool(due.item())
    return bool(now != last)


def notices_all(parametrization: Any) -> bool:
    """Whether a change of the weight would have been noticed since the last iteration.

    One through ``.data`` shows in a sample of the memory, which is read on a CPU alone: a GPU would
    be waited for. There none is made as long as a graph of that iteration waits for its backward.
    """
    if parametrization.follows_steps_alone or parametrization._updated_for[-1] is not None:
        return True
    used, backwards = parametrization._graph
    return used() is not None and backwards == autograd.backwards


def has_iterated(parametrization: Any, weight: Tensor, u: Tensor) -> None:
    """Note that an access has iterated on the weight as it is now; its graph holds ``u``."""
    known = parametrization.__dict__
    known["_updated_for"] = _now(parametrization, weight)
    known["_graph"] = ref(u), autograd.backwards
    overwrite([parametrization.due], [torch.zeros_like(parametrization.due)])


def memories_of(parametrization: Any) -> Memories | None:
    """What the last iteration found the weight and u in, if that tells of changes."""
    last = parametrization.__dict__.get("_updated_for")
    return (last[2], last[5]) if last is not None and len(last) == 7 else None


def have_iterated(
    parametrizations: Sequence[Any],
    weights: Sequence[Tensor],
    memories: Sequence[Memories | None],
    graph: Any,
) -> None:
    """As :func:`has_iterated` of each, by one access to all whose graph holds ``graph``."""
    since = ref(graph), autograd.backwards
    for each, weight, there in zip(parametrizations, weights, memories, strict=True):
        now = _now(each, weight) if there is None else _now_there(weight, there)
        each.__dict__["_updated_for"], each.__dict__["_graph"] = now, since
    dues = [parametrization.due for parametrization in parametrizations]
    overwrite(dues, [torch.zeros_like(dues[0])] * len(dues))


def _now_there(weight: Tensor, memories: Memories) -> tuple[object, ...]:
    """As :func:`_now` of a plain weight in the same memory, u as well."""
    mine, of_u = memories
    place = weight.storage_offset(), weight.stride()
    return (steps, version(weight), mine, *place, of_u, fingerprint(weight) or None)


def _now(parametrization: Any, weight: Tensor) -> tuple[object, ...]:
    """What an iteration now would be of."""
    if parametrization.follows_steps_alone or "_is_fsdp_managed_module" in parametrization.__dict__:
        return (steps, True)
    if functorch.active():
        weight = functorch.plain(weight)
    local = cast(Any, weight).to_local() if is_sharded(weight) else weight
    return (
        steps,
        version(weight),
        memory_of(local),
        local.storage_offset(),
        local.stride(),
        memory_of(parametrization._u),  # functional_call may bring another
        fingerprint(local) or (b"" if local is not weight else None),
    )
