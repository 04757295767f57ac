"""The processes that train together: one, or as many as torchrun has started.

Every rank draws the random numbers of the whole batch and takes its share of them, so a run does
not depend on how many ranks there are, but for rounding.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .batch_norm import synchronize_batch_norm

_names = signature(DistributedDataParallel).parameters
_OPTION = "forward_sync_buffers" if "forward_sync_buffers" in _names else "broadcast_buffers"
NO_BUFFERS: dict[str, Any] = {_OPTION: False}
"""Tells DistributedDataParallel not to send buffers, by the name that this torch has for it."""


@dataclass(frozen=True)
class Ranks:
    """This process, `rank` of `size`; `local` is its number on its machine."""

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """This rank's device of a kind: `cuda` is the GPU of its local number."""
        device = torch.device(name)
        if self.size > 1 and device.type != "cpu" and device.index is None:
            return torch.device(device.type, self.local)
        return device

    def share(self, batch: Tensor) -> Tensor:
        """This rank's part of a batch, whose length `size` divides."""
        return batch.chunk(self.size)[self.rank]

    def mean(self, value: Tensor) -> Tensor:
        """The mean of `value` over the ranks, the same bits on each."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.size
        return value

    def largest(self, number: int) -> int:
        """The largest that a rank has."""
        if self.size == 1:
            return number
        tensor = torch.tensor(number)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)

    def parallel(self, network: nn.Module) -> nn.Module:
        """`network` with its gradients averaged over the ranks, and batch norm of the whole batch.

        Buffers are not sent: u, v and running statistics come out the same on every rank.
        """
        if self.size == 1:
            return network
        synchronize_batch_norm(network)
        return cast(nn.Module, DistributedDataParallel(network, **NO_BUFFERS))


@contextmanager
def joined_ranks(device: str) -> Iterator[Ranks]:
    """The ranks that torchrun has started, by its environment; one where it has not."""
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield Ranks()
        return
    ranks = Ranks(int(os.environ["RANK"]), size, int(os.environ.get("LOCAL_RANK", 0)))
    on_cpu = torch.device(device).type == "cpu"
    dist.init_process_group("gloo" if on_cpu else "cpu:gloo,cuda:nccl")
    try:
        yield ranks
    finally:
        dist.destroy_process_group()
