"""Steps of optimizers, and who is to hear of them.

A weight's version counter does not tell: fused optimizers and FSDP2 leave it as it is.
"""

from __future__ import annotations

from typing import Any, Protocol
from weakref import WeakSet

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

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
        if due.is_inference():  # of a model copied in inference mode, which is not to be trained
            continue
        flags.setdefault(due.device, []).append(due)
    for alike in flags.values():
        torch._foreach_add_(alike, 1)


register_optimizer_step_post_hook(_count_step)
