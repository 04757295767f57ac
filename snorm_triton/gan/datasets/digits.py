"""The handwritten digits that scikit-learn ships: real images, no download."""

import torch

from .images import ImageSet

NUM_CLASSES = 10


def load_digits() -> ImageSet:
    """The 1797 images, 1x8x8, with ink at 255.

    Source: the test set of Alpaydin and Kaynak, Optical Recognition of Handwritten Digits (UCI
    Machine Learning Repository, 1998). Raises ValueError where scikit-learn is missing.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ValueError("data='digits' needs scikit-learn: pip install scikit-learn") from error
    digits = datasets.load_digits()
    images = torch.as_tensor(digits.images).unsqueeze(1) * (255 / 16)  # [N, 1, 8, 8], 0 to 16
    labels = torch.as_tensor(digits.target, dtype=torch.int64)
    return ImageSet(images.round().to(torch.uint8), labels, NUM_CLASSES)
