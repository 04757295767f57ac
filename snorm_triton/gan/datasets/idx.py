"""The IDX files of MNIST, Fashion-MNIST, KMNIST and EMNIST, compressed by gzip or not.

The format: http://yann.lecun.com/exdb/mnist/ (LeCun, Cortes and Burges).
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from .images import ImageSet

UNSIGNED_BYTE = 0x08


def find_idx(folder: Path, what: str) -> Path | None:
    """The file of the training `what`, "images" or "labels"."""
    found = sorted(folder.glob(f"*train-{what}[-.]idx[13]-ubyte*"))
    return next(
        (path for path in found if path.suffix in ("", ".gz") or "idx" in path.suffix), None
    )


def load_idx(folder: Path) -> ImageSet:
    """The training images and labels of a folder; ValueError where a file is missing or wrong."""
    images_file, labels_file = find_idx(folder, "images"), find_idx(folder, "labels")
    if images_file is None or labels_file is None:
        missing = "images" if images_file is None else "labels"
        raise ValueError(f"data: {folder} has no train-{missing}-idx*-ubyte, compressed or not")
    images, labels = read_idx(images_file, 3), read_idx(labels_file, 1).long()
    if len(images) != len(labels) or not len(images):
        raise ValueError(f"data: {folder} has {len(images)} images and {len(labels)} labels")
    return ImageSet(images.unsqueeze(1), labels, int(labels.max()) + 1)


def read_idx(path: Path, ndim: int) -> Tensor:
    """The uint8 tensor of an IDX file, of `ndim` dimensions."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"data: {path} is truncated or no gzip file: {error}") from error
    header = 4 + 4 * ndim
    if len(content) < header or content[:4] != bytes([0, 0, UNSIGNED_BYTE, ndim]):
        raise ValueError(f"data: {path} is no IDX file of bytes in {ndim} dimensions")
    sizes = struct.unpack(f">{ndim}I", content[4:header])
    if len(content) != header + math.prod(sizes):
        raise ValueError(
            f"data: {path} is truncated or damaged: {len(content)} bytes, and not "
            f"{header + math.prod(sizes)} for the sizes {sizes} that it names"
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[header:].reshape(sizes)
