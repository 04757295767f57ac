"""A small classifier of the real images: it judges samples as a stranger would."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .datasets import ImageSet, as_floats
from .frechet import frechet_distance
from .order import ShuffledOrder

PASSES, MOST_STEPS, BATCH = 20, 1500, 64
FEATURES = 32
HELD_OUT = 10
JUDGED_AT_ONCE = 512


class Classifier:
    """Two convolutions and two linear layers, trained on nine tenths of the images.

    `accuracy` is that on the last tenth. The same images and seed give the same classifier on a
    CPU; torch's global generator is left as it was.
    """

    def __init__(self, data: ImageSet, seed: int = 0) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._to_features, self._head = _layers(data.shape[0], data.num_classes)
        shuffled = ShuffledOrder(len(data), seed).take(len(data))
        held_out, training = shuffled.split(
            [len(data) // HELD_OUT, len(data) - len(data) // HELD_OUT]
        )
        self._train(data, training, seed)
        self.accuracy = self.agreement(as_floats(data.images[held_out]), data.labels[held_out])
        parts = data.images.split(JUDGED_AT_ONCE)
        self._real = torch.cat([self.features(as_floats(part)) for part in parts])

    def _train(self, data: ImageSet, training: Tensor, seed: int) -> None:
        order = ShuffledOrder(len(training), seed)
        network = nn.Sequential(self._to_features, self._head)
        steps = min(PASSES * len(training) // BATCH + 1, MOST_STEPS)
        optimizer = torch.optim.Adam(network.parameters(), 3e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            chosen = training[order.take(BATCH)]
            loss = cross_entropy(network(as_floats(data.images[chosen])), data.labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """The 32 features before the last layer, (N, 32), of images (N, C, H, W) in [-1, 1]."""
        return torch.cat([self._to_features(part) for part in images.split(JUDGED_AT_ONCE)])

    @torch.no_grad()
    def agreement(self, images: Tensor, labels: Tensor) -> float:
        """The share of images (N, C, H, W) that it takes for their labels (N,)."""
        taken_for = self._head(self.features(images)).argmax(dim=1)
        return float((taken_for == labels).double().mean())

    def distance_between(self, images: Tensor, others: Tensor) -> float:
        """The Frechet distance of two sets of uint8 images, in its features."""
        return frechet_distance(*(self.features(as_floats(each)) for each in (images, others)))

    def distance(self, images: Tensor) -> float:
        """The Frechet distance of images (N, C, H, W) from all real ones, in its features."""
        return frechet_distance(self.features(images), self._real)


def _layers(channels: int, num_classes: int) -> tuple[nn.Sequential, nn.Linear]:
    to_features = nn.Sequential(
        nn.Conv2d(channels, 16, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(16, 32, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(32 * 16, FEATURES),
        nn.ReLU(),
    )
    return to_features, nn.Linear(FEATURES, num_classes)
