"""The order in which the images are taken: shuffled anew for each pass, without end."""

from typing import Any

import torch
from torch import Tensor


class ShuffledOrder:
    """Numbers from 0 to `length` - 1, each once a pass; a batch may go over from pass to pass."""

    def __init__(self, length: int, seed: int) -> None:
        self._length = length
        self._random = torch.Generator().manual_seed(seed)
        self._begin_pass()

    def take(self, count: int) -> Tensor:
        """The next `count` numbers, int64."""
        parts = []
        while count:
            if self._position == self._length:
                self._begin_pass()
            part = self._pass[self._position : self._position + count]
            self._position += len(part)
            count -= len(part)
            parts.append(part)
        return torch.cat(parts)

    def _begin_pass(self) -> None:
        self._before = self._random.get_state()
        self._pass = torch.randperm(self._length, generator=self._random)
        self._position = 0

    def state_dict(self) -> dict[str, Any]:
        """Where it is: the generator's state before this pass, and the position in it."""
        return {"before_pass": self._before, "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was."""
        self._random.set_state(state["before_pass"])
        self._begin_pass()
        self._position = state["position"]
