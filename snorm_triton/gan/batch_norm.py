"""Batch norm over the batch of all ranks, on a CPU too, where torch's SyncBatchNorm refuses."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class BatchNormOverRanks(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose mean and variance in training are those of the ranks together.

    Every rank has as many images. Parameters, buffers and state dicts are those of nn.BatchNorm2d.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) on each rank -> the same shape."""
        if not self.training:
            return super().forward(x)
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = _mean_over_ranks(values.mean((0, 2, 3)))
        centered = values - mean[:, None, None]
        variance = _mean_over_ranks(centered.square().mean((0, 2, 3)))
        self._update_statistics(mean, variance, x.numel() // x.shape[1] * dist.get_world_size())
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
        normalized = centered * scale[:, None, None]
        if self.affine:
            normalized = normalized + self.bias[:, None, None]
        return normalized.to(x.dtype)

    @torch.no_grad()
    def _update_statistics(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if self.running_mean is None or self.running_var is None or self.momentum is None:
            raise ValueError("batch norm over ranks keeps running statistics with a momentum")
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / max(count - 1, 1)), self.momentum)


class _MeanOverRanks(torch.autograd.Function):
    """The mean of a tensor over the ranks; its gradient is that of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total / dist.get_world_size()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # differentiable again, as it is the same
        return _mean_over_ranks(gradient)


def _mean_over_ranks(value: Tensor) -> Tensor:
    mean: Tensor = _MeanOverRanks.apply(value)
    return mean


def synchronize_batch_norm(network: nn.Module) -> None:
    """Replace each BatchNorm2d below `network` by one with the same parameters and buffers."""
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.BatchNorm2d:
                setattr(parent, name, _over_ranks(layer))


def _over_ranks(layer: nn.BatchNorm2d) -> nn.Module:
    on_gpu = layer.running_mean is not None and layer.running_mean.device.type == "cuda"
    kind = nn.SyncBatchNorm if on_gpu else BatchNormOverRanks
    replacement = kind(layer.num_features, layer.eps, layer.momentum, layer.affine)
    replacement._parameters = layer._parameters
    replacement._buffers = layer._buffers
    replacement.training = layer.training
    return replacement
