"""The binary versions of CIFAR-10 and STL-10.

The formats: https://www.cs.toronto.edu/~kriz/cifar.html (Krizhevsky, 2009) and
https://cs.stanford.edu/~acoates/stl10/ (Coates, Lee and Ng, 2011).
"""

from pathlib import Path

import torch
from torch import Tensor

from .images import ImageSet

NUM_CLASSES = 10
CIFAR_SHAPE, STL_SHAPE = (3, 32, 32), (3, 96, 96)
STL_IMAGES, STL_LABELS = "train_X.bin", "train_y.bin"


def find_cifar10(folder: Path) -> list[Path]:
    return sorted(folder.glob("data_batch_[1-5].bin"))


def load_cifar10(folder: Path) -> ImageSet:
    """The training images, 3x32x32; ValueError where a file is truncated."""
    rows = torch.cat([_rows(path, 1 + 3 * 32 * 32) for path in find_cifar10(folder)])
    return _checked(folder, rows[:, 1:].reshape(-1, *CIFAR_SHAPE), rows[:, 0].long())


def load_stl10(folder: Path) -> ImageSet:
    """The labeled training images, 3x96x96; ValueError where a file is truncated or missing."""
    if not (folder / STL_LABELS).is_file():
        raise ValueError(f"data: {folder} has {STL_IMAGES} and no {STL_LABELS}")
    images = _rows(folder / STL_IMAGES, 3 * 96 * 96).reshape(-1, *STL_SHAPE)
    labels = _rows(folder / STL_LABELS, 1)[:, 0].long() - 1  # there they count from 1
    return _checked(folder, images.transpose(2, 3).contiguous(), labels)  # columns come first


def _rows(path: Path, length: int) -> Tensor:
    content = path.read_bytes()
    if not content or len(content) % length:
        raise ValueError(
            f"data: {path} is truncated: {len(content)} bytes are no multiple of {length}"
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(-1, length)


def _checked(folder: Path, images: Tensor, labels: Tensor) -> ImageSet:
    if len(images) != len(labels):
        raise ValueError(f"data: {folder} has {len(images)} images and {len(labels)} labels")
    if not bool(((labels >= 0) & (labels < NUM_CLASSES)).all()):
        raise ValueError(f"data: {folder} has labels that are none of {NUM_CLASSES} classes")
    return ImageSet(images, labels, NUM_CLASSES)
