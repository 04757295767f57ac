"""The two networks and their game: what one step is, and its state, whole."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .config import TrainingConfig
from .datasets import ImageSet, as_floats
from .losses import LOSSES, gradient_penalty
from .networks import build_discriminator, build_generator
from .order import ShuffledOrder
from .player import Player
from .ranks import Ranks


class Losses(NamedTuple):
    """The losses of one step, scalars on the device; the discriminator's of the last of its steps.

    They are those of this rank's share of the batch.
    """

    discriminator: Tensor
    generator: Tensor


class Trainer:
    """Trains the networks of `config`, which `fit_to_data` has made fit `data`.

    Seeds torch's global generator, from which weights are drawn; noise and the order of the images
    come from generators of its own. `step` is the number of generator steps so far.
    """

    def __init__(self, config: TrainingConfig, data: ImageSet, ranks: Ranks | None = None) -> None:
        self.config = config
        self.ranks = Ranks() if ranks is None else ranks
        self._check_batch(len(data))
        self.device = self.ranks.device(config.device or "cpu")
        self.step = 0
        self._loss = LOSSES[config.loss]
        self._images, self._labels = data.images.to(self.device), data.labels
        self._order = ShuffledOrder(len(data), config.seed)
        self._random = torch.Generator().manual_seed(config.seed)
        torch.manual_seed(config.seed)
        generator = build_generator(config, data).to(self.device)
        discriminator = build_discriminator(config, data).to(self.device)
        self.averaged_generator = AveragedModel(
            generator, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay), use_buffers=True
        ).eval()
        self.generator = Player(generator, config, self.ranks)
        self.discriminator = Player(discriminator, config, self.ranks)

    def _check_batch(self, images: int) -> None:
        batch, size = self.config.batch_size, self.ranks.size
        if batch % size:
            raise ValueError(f"batch_size must be a multiple of the {size} ranks, got {batch}")
        if not images:
            raise ValueError("data holds no images")

    def advance(self) -> Losses:
        """`discriminator_steps` updates of the discriminator, then one of the generator."""
        for player in (self.generator, self.discriminator):
            player.set_learning_rate(self._learning_rate())
        for _ in range(self.config.discriminator_steps):
            loss_d = self._discriminator_step()
        loss_g = self._generator_step()
        self.averaged_generator.update_parameters(self.generator.network)
        self.step += 1
        return Losses(loss_d, loss_g)

    def _learning_rate(self) -> float:
        rate = self.config.learning_rate
        if self.config.schedule == "linear" and self.config.steps is not None:
            rate *= 1 - self.step / self.config.steps
        return rate

    def _discriminator_step(self) -> Tensor:
        chosen = self._order.take(self.config.batch_size)
        real = as_floats(self._images[self._share(chosen)])
        y = self._share_of_labels(chosen)
        with torch.no_grad(), self._autocast():
            fake = self.generator.network(self._noise(), *y)
        with self._autocast():
            real_logits, fake_logits = self.discriminator(real, *y), self.discriminator(fake, *y)
            loss = self._loss.discriminator(_widened(real_logits), _widened(fake_logits))
        if self._loss.penalized:
            loss = loss + self.config.gradient_penalty * self._penalty(real, _widened(fake), y)
        self.discriminator.descend(loss)
        return loss.detach()

    def _penalty(self, real: Tensor, fake: Tensor, y: tuple[Tensor, ...]) -> Tensor:
        """In float32: the gradient of a gradient takes the range of its square."""
        mix = torch.rand(self.config.batch_size, 1, 1, 1, generator=self._random)
        network = self.discriminator.network
        return gradient_penalty(lambda x: network(x, *y), real, fake, self._share(mix))

    def _generator_step(self) -> Tensor:
        chosen = torch.randint(len(self._labels), (self.config.batch_size,), generator=self._random)
        y = self._share_of_labels(chosen)
        judge = self.discriminator.network.requires_grad_(False)
        with self._autocast():
            logits = judge(self.generator(self._noise(), *y), *y)
            loss = self._loss.generator(_widened(logits))
        self.generator.descend(loss)
        judge.requires_grad_(True)
        return loss.detach()

    def _noise(self) -> Tensor:
        return self._share(
            torch.randn(self.config.batch_size, self.config.z_dim, generator=self._random)
        )

    def _share(self, batch: Tensor) -> Tensor:
        return self.ranks.share(batch).to(self.device)

    def _share_of_labels(self, chosen: Tensor) -> tuple[Tensor, ...]:
        """What both networks take after their input: labels, or nothing."""
        return (self._share(self._labels[chosen]),) if self.config.conditional else ()

    def _autocast(self) -> torch.autocast:
        enabled = self.config.autocast != "none"
        dtype = getattr(torch, self.config.autocast) if enabled else None
        return torch.autocast(self.device.type, dtype, enabled=enabled)

    @torch.no_grad()
    def sample(self, z: Tensor, y: Tensor | None) -> Tensor:
        """What the averaged generator makes of noise (N, z_dim) and labels (N,), on the CPU."""
        inputs = [each.to(self.device) for each in (z, y) if each is not None]
        images: Tensor = self.averaged_generator(*inputs)
        return images.float().cpu()

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on, but for config and data."""
        return {
            "step": self.step,
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "averaged_generator": self.averaged_generator.state_dict(),
            "order": self._order.state_dict(),
            "random": self._random.get_state(),
            "global_random": torch.get_rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was; RuntimeError where it is that of other networks."""
        self.generator.load_state_dict(state["generator"])
        self.discriminator.load_state_dict(state["discriminator"])
        self.averaged_generator.load_state_dict(state["averaged_generator"])
        self._order.load_state_dict(state["order"])
        self._random.set_state(state["random"])
        torch.set_rng_state(state["global_random"])
        self.step = state["step"]


def _widened(values: Tensor) -> Tensor:
    """In float32 at least: what autocast made half as wide."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
