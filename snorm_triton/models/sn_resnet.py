"""SN-ResNet: the residual GAN of the spectral normalization paper.

Miyato, Kataoka, Koyama, Yoshida: Spectral Normalization for Generative Adversarial Networks
(arXiv 1802.05957), Tables 4 to 6; the projection head follows Miyato and Koyama: cGANs with
Projection Discriminator (arXiv 1802.05637). Initialized as in the authors' code.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Self

from torch import Tensor, nn
from torch.nn import functional

from ..api.spectral_norm import spectral_norm
from .arguments import (
    Normalization,
    check_labels,
    check_normalization,
    check_sizes,
    widths_of,
)
from .blocks import (
    DiscriminatorBlock,
    GeneratorBlock,
    OptimizedBlock,
    glorot,
    normalize_layers,
)


class SNResNetDiscriminator(nn.Module):
    """The residual discriminator: blocks, ReLU, global sum, linear; every weight normalized.

    Args:
        num_blocks: residual blocks, the first of them the optimized one.
        channels: the width of every block, or one width for each.
        in_channels: channels of the image.
        num_downsamples: how many blocks, from the first on, halve the resolution; None is two, or
            one where there is one block.
        num_classes: adds the projection head, a normalized class embedding whose inner product
            with the summed features is added to the output.
        head_bias: whether the last linear layer has a bias.
        normalization: what is done to every Conv2d, Linear and Embedding after its initialization:
            a callable that takes the layer and returns it, or None for nothing.

    Raises:
        ValueError: a size is no positive integer, `channels` does not fit `num_blocks`, or
            `num_downsamples` is not between 1 and `num_blocks`.
        TypeError: `normalization` is no function, or returns something else than a module.

    Example:
        >>> from snorm_triton import SNResNetDiscriminator
        >>> import torch
        >>> discriminator = SNResNetDiscriminator.cifar10()
        >>> discriminator(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 1])
    """

    def __init__(
        self,
        num_blocks: int = 4,
        channels: int | Sequence[int] = 128,
        in_channels: int = 3,
        *,
        num_downsamples: int | None = None,
        num_classes: int | None = None,
        head_bias: bool = True,
        normalization: Normalization | None = spectral_norm,
    ) -> None:
        super().__init__()
        check_normalization(normalization)
        check_sizes(num_blocks=num_blocks, in_channels=in_channels)
        if num_classes is not None:
            check_sizes(num_classes=num_classes)
        if num_downsamples is None:
            num_downsamples = min(2, num_blocks)
        check_sizes(num_downsamples=num_downsamples)
        if num_downsamples > num_blocks:
            raise ValueError(
                f"num_downsamples must be at most num_blocks={num_blocks}, got {num_downsamples}"
            )
        widths = widths_of(channels, num_blocks)
        self.num_classes = num_classes
        self.blocks = nn.Sequential(OptimizedBlock(in_channels, widths[0]))
        for place, (width_in, width_out) in enumerate(pairwise(widths), start=1):
            down = place < num_downsamples
            self.blocks.append(DiscriminatorBlock(width_in, width_out, downsample=down))
        self.linear = glorot(nn.Linear(widths[-1], 1, bias=head_bias))
        self.embedding = None
        if num_classes is not None:
            self.embedding = glorot(nn.Embedding(num_classes, widths[-1]))
        normalize_layers(self, normalization)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Images (N, in_channels, H, W) and, with num_classes, labels (N,) -> logits (N, 1).

        Raises ValueError where y is missing, of another shape, or given to an unconditional model.
        """
        check_labels(y, self.num_classes)
        features = functional.relu(self.blocks(x)).sum(dim=(2, 3))  # [N, C]
        output: Tensor = self.linear(features)
        if self.embedding is not None:
            output = output + (self.embedding(y) * features).sum(dim=1, keepdim=True)
        return output

    @classmethod
    def cifar10(
        cls,
        *,
        num_classes: int | None = None,
        normalization: Normalization | None = spectral_norm,
    ) -> Self:
        """The paper's discriminator of 32x32 images (Table 4): 1,053,824 parameters."""
        return cls(
            num_classes=num_classes,
            head_bias=False,
            normalization=normalization,
        )

    @classmethod
    def stl10(
        cls,
        *,
        num_classes: int | None = None,
        normalization: Normalization | None = spectral_norm,
    ) -> Self:
        """The paper's discriminator of 48x48 images (Table 5)."""
        return cls(
            num_blocks=5,
            channels=(64, 128, 256, 512, 1024),
            num_downsamples=4,
            num_classes=num_classes,
            normalization=normalization,
        )

    @classmethod
    def imagenet(
        cls,
        *,
        num_classes: int | None = None,
        normalization: Normalization | None = spectral_norm,
    ) -> Self:
        """The paper's discriminator of 128x128 images (Table 6)."""
        return cls(
            num_blocks=6,
            channels=(64, 128, 256, 512, 1024, 1024),
            num_downsamples=5,
            num_classes=num_classes,
            normalization=normalization,
        )


class SNResNetGenerator(nn.Module):
    """The residual generator: linear, up-sampling blocks, batch norm, ReLU, conv3x3, tanh.

    Nothing in it is spectrally normalized, as in the paper.

    Args:
        num_blocks: residual blocks.
        channels: the width everywhere, or `num_blocks` + 1 widths, from the first block's input on.
        out_channels: channels of the image.
        z_dim: length of the noise vector.
        bottom_width: resolution before the first block, which each block doubles.
        num_classes: gives the batch norm of the blocks a scale and a shift for each class.

    Raises:
        ValueError: a size is no positive integer, or `channels` does not fit `num_blocks`.

    Example:
        >>> from snorm_triton import SNResNetGenerator
        >>> import torch
        >>> generator = SNResNetGenerator.cifar10()
        >>> generator(torch.randn(2, generator.z_dim)).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self,
        num_blocks: int = 3,
        channels: int | Sequence[int] = 256,
        out_channels: int = 3,
        *,
        z_dim: int = 128,
        bottom_width: int = 4,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        check_sizes(num_blocks=num_blocks, out_channels=out_channels, z_dim=z_dim)
        check_sizes(bottom_width=bottom_width)
        if num_classes is not None:
            check_sizes(num_classes=num_classes)
        widths = widths_of(channels, num_blocks + 1)
        self.z_dim, self.bottom_width, self.num_classes = z_dim, bottom_width, num_classes
        self.linear = glorot(nn.Linear(z_dim, widths[0] * bottom_width**2))
        self.blocks = nn.ModuleList(
            GeneratorBlock(width_in, width_out, num_classes)
            for width_in, width_out in pairwise(widths)
        )
        self.norm = nn.BatchNorm2d(widths[-1])
        self.conv = glorot(nn.Conv2d(widths[-1], out_channels, kernel_size=3, padding=1))

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Noise (N, z_dim) and, with num_classes, labels (N,) -> images (N, C, H, W) in [-1, 1].

        Raises ValueError where y is missing, of another shape, or given to an unconditional model.
        """
        check_labels(y, self.num_classes)
        x: Tensor = self.linear(z).unflatten(1, (-1, self.bottom_width, self.bottom_width))
        for block in self.blocks:
            x = block(x, y)
        return functional.tanh(self.conv(functional.relu(self.norm(x))))

    @classmethod
    def cifar10(cls, *, num_classes: int | None = None) -> Self:
        """The paper's generator of 32x32 images (Table 4)."""
        return cls(num_classes=num_classes)

    @classmethod
    def stl10(cls, *, num_classes: int | None = None) -> Self:
        """The paper's generator of 48x48 images (Table 5)."""
        return cls(channels=(512, 256, 128, 64), bottom_width=6, num_classes=num_classes)

    @classmethod
    def imagenet(cls, *, num_classes: int | None = None) -> Self:
        """The paper's generator of 128x128 images (Table 6)."""
        widths = (1024, 1024, 512, 256, 128, 64)
        return cls(num_blocks=5, channels=widths, num_classes=num_classes)
