"""The handwritten digits that scikit-learn ships: real images, no download."""

import torch
from sklearn import datasets, svm
from torch import Tensor

NUM_CLASSES = 10


def load_digits() -> tuple[Tensor, Tensor]:
    """The 1797 images (N, 1, 8, 8), float32 in [-1, 1] with ink at 1, and their labels (N,), int64.

    Source: the test set of Alpaydin and Kaynak, Optical Recognition of Handwritten Digits (UCI
    Machine Learning Repository, 1998).
    """
    digits = datasets.load_digits()
    images = torch.as_tensor(digits.images, dtype=torch.float32)  # [N, 8, 8], 0 to 16
    return images.unsqueeze(1) / 8 - 1, torch.as_tensor(digits.target, dtype=torch.int64)


def rows_of_digits(images: Tensor, labels: Tensor, rows: int) -> Tensor:
    """The first `rows` images of each class, (rows * 10, 1, 8, 8): 0 to 9, then 0 to 9 again."""
    columns = [images[labels == digit][:rows] for digit in range(NUM_CLASSES)]
    return torch.stack(columns, dim=1).flatten(0, 1)


class DigitReader:
    """Reads generated digits as a stranger would: a classifier that has only seen real ones."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self._classifier = svm.SVC(gamma=0.06, C=10.0)
        self._classifier.fit(images.flatten(1).numpy(), labels.numpy())

    def agreement(self, images: Tensor, labels: Tensor) -> float:
        """The share of `images` (N, 1, 8, 8) that it reads as their `labels` (N,)."""
        read = torch.as_tensor(self._classifier.predict(images.flatten(1).numpy()))
        return (read == labels).double().mean().item()
