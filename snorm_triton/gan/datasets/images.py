"""Images in memory, with their labels."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

RESIZED_AT_ONCE = 4096


@dataclass(frozen=True)
class ImageSet:
    """Images (N, C, H, W), uint8, and their labels (N,), int64, from 0 to `num_classes` - 1."""

    images: Tensor
    labels: Tensor
    num_classes: int

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def resized(self, size: int) -> "ImageSet":
        """All images as (C, size, size), bilinear with antialiasing."""
        if self.shape[1:] == (size, size):
            return self
        parts = [
            interpolate(part.float(), size=(size, size), mode="bilinear", antialias=True)
            for part in self.images.split(RESIZED_AT_ONCE)
        ]
        images = torch.cat([part.round().clamp(0, 255).to(torch.uint8) for part in parts])
        return ImageSet(images, self.labels, self.num_classes)

    @property
    def classes(self) -> Tensor:
        """The labels that there are, in order."""
        distinct: Tensor = self.labels.unique()
        return distinct

    def rows(self, count: int, classes: Tensor) -> Tensor:
        """The first `count` images of each of `classes`, a class a column; one with fewer repeats.

        (count * len(classes), C, H, W), uint8.
        """
        of_class = [self.images[self.labels == label] for label in classes]
        chosen = [images[torch.arange(count) % len(images)] for images in of_class]
        return torch.stack(chosen, dim=1).flatten(0, 1)


def as_floats(images: Tensor) -> Tensor:
    """uint8 images in [-1, 1], in torch's default dtype."""
    return images.to(torch.get_default_dtype()) / 127.5 - 1


def as_bytes(images: Tensor) -> Tensor:
    """Float images in [-1, 1] as uint8."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
