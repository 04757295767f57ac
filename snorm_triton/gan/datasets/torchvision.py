"""The datasets of torchvision, where it is installed."""

from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from ..choices import check_choice
from .image_folder import DEFAULT_SIZE, pixels_of
from .images import ImageSet

PREFIX = "torchvision:"


def load_torchvision(data: str, size: int | None) -> ImageSet:
    """The training images of `torchvision:NAME:FOLDER`, downloaded if need be.

    FOLDER may be left out, and is `data` then. Gray images stay gray. `size` is by default the
    height of the first image where that is square, else 32. Raises ValueError where torchvision is
    missing or has no dataset of that name, or where it cannot be loaded.
    """
    name, _, folder = data.removeprefix(PREFIX).partition(":")
    if find_spec("torchvision") is None:
        raise ValueError(f"data={data!r} needs torchvision: pip install torchvision")
    try:
        datasets: Any = import_module("torchvision.datasets")
    except Exception as error:  # one that was built for another torch fails in ways of its own
        raise ValueError(f"data={data!r}: torchvision cannot be imported: {error}") from error
    check_choice("data=torchvision:NAME: NAME", name, datasets.__all__)
    make: Any = getattr(datasets, name)
    parameters = signature(make.__init__).parameters
    options = {"root": folder or "data", "train": True, "split": "train", "download": True}
    try:
        dataset = make(**{key: options[key] for key in options if key in parameters})
        return _in_memory(dataset, size)
    except Exception as error:  # whatever a download or a foreign dataset raises
        reason = " ".join(str(error).split())
        raise ValueError(f"data={data!r}: torchvision cannot load it: {reason}") from error


def _in_memory(dataset: Any, size: int | None) -> ImageSet:
    first, _ = dataset[0]
    if size is None:
        size = first.height if first.width == first.height else DEFAULT_SIZE
    gray = first.mode in ("L", "1")
    images: list[Tensor] = []
    labels: list[int] = []
    for image, label in (dataset[index] for index in range(len(dataset))):
        pixels = pixels_of(image, size)
        images.append(pixels[:1].clone() if gray else pixels)
        labels.append(int(label))
    return ImageSet(torch.stack(images), torch.tensor(labels), max(labels) + 1)
