"""The training loop: hinge loss, Adam, class labels for both networks, an averaged generator."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import parametrizations
from torch.optim.lr_scheduler import LinearLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..api.spectral_norm import spectral_norm
from ..models import SNResNetDiscriminator, SNResNetGenerator
from ..models.arguments import Normalization
from .losses import discriminator_loss, generator_loss

NORMALIZATIONS: Mapping[str, Normalization | None] = {
    "snorm": spectral_norm,
    "torch": parametrizations.spectral_norm,
    "none": None,
}
"""Those of the discriminator that the demo compares, by name."""


@dataclass(frozen=True)
class TrainingConfig:
    """What the demo trains with: the paper's CIFAR-10 discriminator, 32 instead of 128 wide.

    The learning rate falls linearly to zero over `steps`. The paper's, 2e-4, is for 50,000
    generator steps; in a few thousand a larger one gets further.
    """

    steps: int = 2500
    batch_size: int = 64
    z_dim: int = 32
    channels: int = 32
    bottom_width: int = 2
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.0, 0.9)
    discriminator_steps: int = 1
    ema_decay: float = 0.995


class Losses(NamedTuple):
    """The losses of one step; the discriminator's is from the last of its steps."""

    discriminator: float
    generator: float


class Trainer:
    """Trains an SN-ResNet GAN on images (N, 1, H, H) in [-1, 1] with labels (N,).

    H is `bottom_width` times a power of two from 2 on, ValueError otherwise. Both networks live
    where the images do, and every random number is drawn from torch's global generators: seed those
    for a run that can be repeated.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        config: TrainingConfig,
        normalization: Normalization | None = spectral_norm,
    ) -> None:
        num_classes = int(labels.max()) + 1
        self.images, self.labels, self.config = images, labels, config
        self.generator = SNResNetGenerator(
            _num_blocks(images, config.bottom_width),
            config.channels,
            out_channels=1,
            z_dim=config.z_dim,
            bottom_width=config.bottom_width,
            num_classes=num_classes,
        ).to(images.device)
        self.discriminator = SNResNetDiscriminator(
            channels=config.channels,
            in_channels=1,
            num_classes=num_classes,
            head_bias=False,
            normalization=normalization,
        ).to(images.device)
        self.averaged_generator = AveragedModel(
            self.generator,
            multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay),
            use_buffers=True,
        ).eval()
        self._generator_optimizer = torch.optim.Adam(
            self.generator.parameters(), config.learning_rate, config.betas
        )
        self._discriminator_optimizer = torch.optim.Adam(
            self.discriminator.parameters(), config.learning_rate, config.betas
        )
        self._schedules = [
            LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=config.steps)
            for optimizer in (self._generator_optimizer, self._discriminator_optimizer)
        ]

    def step(self) -> Losses:
        """`discriminator_steps` updates of the discriminator, then one of the generator."""
        for _ in range(self.config.discriminator_steps):
            loss_d = self._discriminator_step()
        loss_g = self._generator_step()
        self.averaged_generator.update_parameters(self.generator)
        for schedule in self._schedules:
            schedule.step()
        return Losses(loss_d.item(), loss_g.item())

    def noise(self, count: int) -> Tensor:
        """Standard normal noise (count, z_dim)."""
        return torch.randn(count, self.config.z_dim, device=self.images.device)

    @torch.no_grad()
    def sample(self, z: Tensor, y: Tensor) -> Tensor:
        """What the averaged generator makes of noise (N, z_dim) and labels (N,)."""
        images: Tensor = self.averaged_generator(z, y)
        return images

    def _real_batch(self) -> tuple[Tensor, Tensor]:
        size = (self.config.batch_size,)
        chosen = torch.randint(len(self.images), size, device=self.images.device)
        return self.images[chosen], self.labels[chosen]

    def _discriminator_step(self) -> Tensor:
        real, y = self._real_batch()
        with torch.no_grad():
            fake = self.generator(self.noise(len(y)), y)
        # one pass for both: nothing in the discriminator mixes the images of a batch
        logits = self.discriminator(torch.cat([real, fake]), torch.cat([y, y]))
        loss = discriminator_loss(*logits.chunk(2))
        self._discriminator_optimizer.zero_grad()
        loss.backward()
        self._discriminator_optimizer.step()
        return loss.detach()

    def _generator_step(self) -> Tensor:
        _, y = self._real_batch()
        self.discriminator.requires_grad_(False)
        loss = generator_loss(self.discriminator(self.generator(self.noise(len(y)), y), y))
        self._generator_optimizer.zero_grad()
        loss.backward()
        self._generator_optimizer.step()
        self.discriminator.requires_grad_(True)
        return loss.detach()


def _num_blocks(images: Tensor, bottom_width: int) -> int:
    """How often the generator doubles `bottom_width`; ValueError where that never is H."""
    num_blocks = (images.shape[-1] // bottom_width).bit_length() - 1
    if num_blocks < 1 or images.shape[1:] != (1, *[bottom_width * 2**num_blocks] * 2):
        raise ValueError(
            f"images must have shape (N, 1, H, H) with H a multiple of bottom_width={bottom_width} "
            f"by 2, 4, 8 and so on, got {tuple(images.shape)}"
        )
    return num_blocks
