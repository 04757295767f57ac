"""One of the two networks with all that trains it."""

from typing import Any

import torch
from torch import Tensor, nn

from .config import TrainingConfig
from .ranks import Ranks


class Player:
    """A network, Adam for it, and in float16 a scale of its loss.

    `network` is the plain module; calling the player calls it in parallel over the ranks, which is
    for the forward whose loss this player descends.
    """

    def __init__(self, network: nn.Module, config: TrainingConfig, ranks: Ranks) -> None:
        self.network = network
        self._parallel = ranks.parallel(network)
        if config.compile:
            network.compile()
        self.optimizer = torch.optim.Adam(network.parameters(), config.learning_rate, config.betas)
        self._scaler = torch.amp.GradScaler(
            config.device or "cpu", enabled=config.autocast == "float16"
        )

    def __call__(self, *inputs: Tensor) -> Tensor:
        output: Tensor = self._parallel(*inputs)
        return output

    def set_learning_rate(self, learning_rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate

    def descend(self, loss: Tensor) -> None:
        """One step of the optimizer down the gradient of `loss`."""
        self.optimizer.zero_grad()
        self._scaler.scale(loss).backward()
        self._scaler.step(self.optimizer)
        self._scaler.update()

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a state; RuntimeError where it is that of another network."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
