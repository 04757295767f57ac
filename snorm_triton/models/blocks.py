"""The residual blocks of the SN-ResNet GANs (Miyato et al., arXiv 1802.05957, Tables 4 to 6)."""

import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from .arguments import Normalization

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear, nn.Embedding)


def normalize_layers(model: nn.Module, normalization: Normalization | None) -> None:
    """Normalize every Conv2d, Linear and Embedding of `model`, in place.

    A model calls it last, when the weights are drawn. Raises TypeError where `normalization`
    returns something else than a module.
    """
    if normalization is None:
        return
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Conv2d | nn.Linear | nn.Embedding):
                setattr(parent, name, _normalize(layer, normalization))


def _normalize(layer: nn.Module, normalization: Normalization) -> nn.Module:
    kind = type(layer).__name__
    try:
        normalized = normalization(layer)
    except Exception as error:
        error.add_note(f"normalization={normalization!r} raised it for a {kind}")
        raise
    if not isinstance(normalized, nn.Module):
        raise TypeError(
            "normalization must return the layer that it is given, normalized; for a "
            f"{kind} it returned {normalized!r}"
        )
    return normalized


def glorot(layer: Layer, gain: float = 1) -> Layer:
    """The layer with a Glorot-uniform weight and a zero bias."""
    nn.init.xavier_uniform_(layer.weight, gain)
    if not isinstance(layer, nn.Embedding) and layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 3x3 convolution that keeps the resolution, drawn with gain sqrt 2."""
    return glorot(nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1), math.sqrt(2))


def conv1x1(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 1x1 convolution, drawn with gain 1: the learned shortcut of a block."""
    return glorot(nn.Conv2d(in_channels, out_channels, kernel_size=1))


class OptimizedBlock(nn.Module):
    """The first block of a discriminator, (N, in, H, W) -> (N, out, H/2, W/2).

    It reads the image itself: no ReLU before the first convolution, and the shortcut pools first.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.shortcut = conv1x1(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv2(functional.relu(self.conv1(x)))
        shortcut: Tensor = self.shortcut(functional.avg_pool2d(x, 2))
        return functional.avg_pool2d(residual, 2) + shortcut


class DiscriminatorBlock(nn.Module):
    """A later block of a discriminator, (N, in, H, W) -> (N, out, H, W), or H/2, W/2 when down.

    The shortcut is a 1x1 convolution where the channels or the resolution change, else identity.
    """

    def __init__(self, in_channels: int, out_channels: int, *, downsample: bool) -> None:
        super().__init__()
        learned = downsample or in_channels != out_channels
        self.downsample = downsample
        self.conv1 = conv3x3(in_channels, in_channels)
        self.conv2 = conv3x3(in_channels, out_channels)
        self.shortcut = conv1x1(in_channels, out_channels) if learned else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv2(functional.relu(self.conv1(functional.relu(x))))
        output: Tensor = residual + self.shortcut(x)
        # the mean of a sum is the sum of the means: one pooling serves both branches
        return functional.avg_pool2d(output, 2) if self.downsample else output


class ConditionalBatchNorm2d(nn.Module):
    """Batch norm with a scale and a shift for each class (de Vries et al., arXiv 1707.00683)."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.normalize = nn.BatchNorm2d(channels, affine=False)
        self.scale = nn.Embedding(num_classes, channels)
        self.shift = nn.Embedding(num_classes, channels)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        scale, shift = (table(y)[..., None, None] for table in (self.scale, self.shift))
        normalized: Tensor = self.normalize(x)
        return torch.addcmul(shift, scale, normalized)  # shift and scale: [N, C, 1, 1]


class GeneratorBlock(nn.Module):
    """A block of a generator, (N, in, H, W) -> (N, out, 2H, 2W), up-sampled by nearest neighbor.

    With `num_classes` its batch norm takes the scale and shift of the labels y, (N,).
    """

    def __init__(self, in_channels: int, out_channels: int, num_classes: int | None) -> None:
        super().__init__()
        self.norm1 = self._batch_norm(in_channels, num_classes)
        self.conv1 = conv3x3(in_channels, out_channels)
        self.norm2 = self._batch_norm(out_channels, num_classes)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.shortcut = conv1x1(in_channels, out_channels)

    @staticmethod
    def _batch_norm(channels: int, num_classes: int | None) -> nn.Module:
        if num_classes is None:
            return nn.BatchNorm2d(channels)
        return ConditionalBatchNorm2d(channels, num_classes)

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        labels = () if y is None else (y,)
        residual = functional.relu(self.norm1(x, *labels))
        residual = self.conv1(functional.interpolate(residual, scale_factor=2.0))
        residual = self.conv2(functional.relu(self.norm2(residual, *labels)))
        output: Tensor = residual + self.shortcut(functional.interpolate(x, scale_factor=2.0))
        return output
