"""SN-DCGAN: the small convolutional GAN of the "Spectrally Normalized GANs" course notebook.

The architecture (28x28 images by default, leaky ReLU and batch norm in the discriminator, noise of
length 64, N(0, 0.02) initialization) is the notebook's. The order differs: the notebook draws after
it has registered torch's hook, under which `weight` shares the memory of the original until the
first forward; here weights are drawn first. Either way the raw weights start as N(0, 0.02).
"""

from torch import Tensor, nn

from ..api.spectral_norm import spectral_norm
from .arguments import Normalization, check_normalization, check_sizes
from .blocks import normalize_layers


def _draw(module: nn.Module) -> None:
    """N(0, 0.02) for the weights of convolutions and batch norm; batch norm starts unshifted."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    if isinstance(module, nn.BatchNorm2d):
        nn.init.zeros_(module.bias)


class SNDCGANDiscriminator(nn.Sequential):
    """Three strided 4x4 convolutions, each normalized, the first two with batch norm.

    Args:
        in_channels: channels of the image.
        channels: width of the first convolution; the second has twice as many.
        normalization: what is done to every convolution, after its initialization: a callable that
            takes the layer and returns it, or None for nothing.

    Raises:
        ValueError: a size is no positive integer.
        TypeError: `normalization` is no function, or returns something else than a module.

    Example:
        >>> from snorm_triton import SNDCGANDiscriminator
        >>> import torch
        >>> SNDCGANDiscriminator()(torch.randn(2, 1, 28, 28)).shape
        torch.Size([2, 1])
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: int = 16,
        *,
        normalization: Normalization | None = spectral_norm,
    ) -> None:
        check_normalization(normalization)
        check_sizes(in_channels=in_channels, channels=channels)
        super().__init__(
            nn.Conv2d(in_channels, channels, kernel_size=4, stride=2),
            nn.BatchNorm2d(channels),
            nn.LeakyReLU(0.2),
            nn.Conv2d(channels, 2 * channels, kernel_size=4, stride=2),
            nn.BatchNorm2d(2 * channels),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * channels, 1, kernel_size=4, stride=2),
        )
        self.apply(_draw)
        normalize_layers(self, normalization)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) -> logits (N, K), one for each place: K = 1 at 28x28."""
        logits: Tensor = super().forward(x)  # [N, 1, H', W']
        return logits.flatten(1)


class SNDCGANGenerator(nn.Sequential):
    """Four transposed convolutions with batch norm: noise (N, z_dim) -> images of 28x28.

    Args:
        z_dim: length of the noise vector.
        channels: width before the last convolution; the first two have four and two times as many.
        out_channels: channels of the image.

    Raises:
        ValueError: a size is no positive integer.

    Example:
        >>> from snorm_triton import SNDCGANGenerator
        >>> import torch
        >>> SNDCGANGenerator()(torch.randn(2, 64)).shape
        torch.Size([2, 1, 28, 28])
    """

    def __init__(self, z_dim: int = 64, channels: int = 64, out_channels: int = 1) -> None:
        check_sizes(z_dim=z_dim, channels=channels, out_channels=out_channels)
        super().__init__(
            nn.ConvTranspose2d(z_dim, 4 * channels, kernel_size=3, stride=2),  # 3x3
            nn.BatchNorm2d(4 * channels),
            nn.ReLU(),
            nn.ConvTranspose2d(4 * channels, 2 * channels, kernel_size=4, stride=1),  # 6x6
            nn.BatchNorm2d(2 * channels),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * channels, channels, kernel_size=3, stride=2),  # 13x13
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.ConvTranspose2d(channels, out_channels, kernel_size=4, stride=2),  # 28x28
            nn.Tanh(),
        )
        self.z_dim = z_dim
        self.apply(_draw)

    def forward(self, z: Tensor) -> Tensor:
        """Noise (N, z_dim) -> images (N, out_channels, 28, 28) in [-1, 1]."""
        images: Tensor = super().forward(z[..., None, None])
        return images
