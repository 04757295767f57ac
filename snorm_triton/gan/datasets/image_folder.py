"""Images of any size in folders, one for each class, read by Pillow."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .images import ImageSet

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
DEFAULT_SIZE = 32


def image_files(folder: Path) -> list[tuple[Path, int]]:
    """Every image below `folder` with the number of its class.

    The classes are the subfolders that hold images, in order of their names; where the images lie
    in `folder` itself they are one class.
    """
    subfolders = sorted(path for path in folder.iterdir() if path.is_dir())
    files_of = {each: _images(each.rglob("*")) for each in subfolders}
    classes = [files for files in files_of.values() if files] or [_images(folder.iterdir())]
    return [(path, label) for label, files in enumerate(classes) for path in files]


def _images(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if path.suffix.lower() in SUFFIXES)


def load_image_folder(folder: Path, size: int | None) -> ImageSet:
    """Every image, cropped to its central square and resized to 3 x size x size.

    `size` is 32 by default. Raises ValueError for an image that cannot be read.
    """
    from tqdm import tqdm

    files = image_files(folder)
    read = _reader(DEFAULT_SIZE if size is None else size)
    with ThreadPoolExecutor() as pool:
        pixels = pool.map(read, [path for path, _ in files])
        images = list(tqdm(pixels, "images", len(files), unit="image", leave=False, disable=None))
    labels = torch.tensor([label for _, label in files])
    return ImageSet(torch.stack(images), labels, int(labels.max()) + 1)


def _reader(size: int) -> Callable[[Path], Tensor]:
    try:
        from PIL import Image
    except ImportError as error:
        raise ValueError("data: a folder of images needs Pillow: pip install pillow") from error

    def read(path: Path) -> Tensor:
        with path.open("rb") as file:
            try:
                image = Image.open(file)
                image.load()
            except Exception as error:  # Pillow's decoders raise whatever they raise
                raise ValueError(f"data: {path} is no image that can be read: {error}") from error
        return pixels_of(image, size)

    return read


def pixels_of(image: "Image", size: int) -> Tensor:
    """The central square of a Pillow image in RGB as uint8 (3, size, size)."""
    from PIL import ImageOps

    square: Any = ImageOps.fit(image.convert("RGB"), (size, size))
    pixels = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8)
    return pixels.reshape(size, size, 3).permute(2, 0, 1).contiguous()
