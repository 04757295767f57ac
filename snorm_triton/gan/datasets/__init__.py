"""The images to train on: `load` takes a name or a folder, one file reads each format."""

from pathlib import Path

from ..choices import nearest
from .binary import STL_IMAGES, find_cifar10, load_cifar10, load_stl10
from .digits import load_digits
from .idx import find_idx, load_idx
from .image_folder import image_files, load_image_folder
from .images import ImageSet, as_bytes, as_floats
from .torchvision import PREFIX, load_torchvision

__all__ = ["ImageSet", "as_bytes", "as_floats", "load"]

NAMES = ("digits", PREFIX)


def load(data: str, size: int | None = None) -> ImageSet:
    """The images of `digits`, of a folder, or of `torchvision:NAME`, resized to `size` if given.

    A folder holds the IDX files of MNIST, the binary version of CIFAR-10 or STL-10, or images in a
    folder for each class. Raises ValueError, which says what is wrong, and OSError for files that
    cannot be read.
    """
    if data == "digits":
        loaded = load_digits()
    elif data.startswith(PREFIX):
        loaded = load_torchvision(data, size)
    else:
        loaded = _load_folder(Path(data), size)
    return loaded if size is None else loaded.resized(size)


def _load_folder(folder: Path, size: int | None) -> ImageSet:
    if not folder.exists():
        raise ValueError(
            f"data: there is no dataset or folder {str(folder)!r}{nearest(folder, NAMES)}"
        )
    if not folder.is_dir():
        raise ValueError(f"data: {folder} is a file, and not a folder")
    if find_idx(folder, "images") or find_idx(folder, "labels"):
        return load_idx(folder)
    if find_cifar10(folder):
        return load_cifar10(folder)
    if (folder / STL_IMAGES).exists():
        return load_stl10(folder)
    if image_files(folder):
        return load_image_folder(folder, size)
    raise ValueError(
        f"data: {folder} holds no train-images-idx3-ubyte, data_batch_1.bin, {STL_IMAGES} or images"
    )
