"""Pictures of images: grids, and samples over the training."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imsave
from torch import Tensor
from torch.nn import functional

from ..checkpoints.placing import put_bytes

SHOWN = 64
"""Height in pixels to which smaller images are enlarged."""


def tile(images: Tensor, columns: int) -> Tensor:
    """Images (N, C, H, W), uint8, N a multiple of `columns`, as one picture (rows, columns, C).

    Small ones are enlarged (bicubic), gray ones turned to dark ink on white paper; each has a
    margin.
    """
    zoom = max(1, SHOWN // images.shape[-1])
    pixels = images.float()
    if images.shape[1] == 1:
        pixels = (255 - pixels).expand(-1, 3, -1, -1)
    if zoom > 1:
        pixels = functional.interpolate(pixels, scale_factor=zoom, mode="bicubic")
    margin = max(1, pixels.shape[-1] // 16)
    framed = functional.pad(pixels.clamp(0, 255), [margin] * 4, value=255.0)
    rows = framed.reshape(-1, columns, *framed.shape[1:])  # [rows, columns, 3, H, W]
    return rows.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1).round().byte()


def save_figure(path: Path, figure: Figure) -> None:
    """The figure as a PNG that comes into place when it is complete; OSError where it cannot."""
    content = BytesIO()
    figure.savefig(content, format="png", dpi=100)
    put_bytes(path, content.getvalue())


def save_grid(path: Path, images: Tensor, columns: int) -> None:
    """Images (N, C, H, W), uint8, as a PNG of rows of `columns`."""
    content = BytesIO()
    imsave(content, tile(images, columns).numpy(), format="png")
    put_bytes(path, content.getvalue())


def draw_samples(
    path: Path, real: Tensor, generated: Mapping[int, Tensor], *, columns: int
) -> None:
    """Real images beside the generated ones of the last step, and below them the earlier ones.

    `generated` is by step. All are (N, C, H, W), uint8; those of a column belong together.
    """
    *earlier, last = sorted(generated)
    figure = Figure(figsize=(15, 10), layout="constrained")
    half = max(len(earlier), 1)
    grid = figure.add_gridspec(2, 2 * half, height_ratios=(2, 1))
    _show(figure.add_subplot(grid[0, :half]), real, "real", columns)
    _show(figure.add_subplot(grid[0, half:]), generated[last], f"generated, step {last}", columns)
    for place, step in enumerate(earlier):
        axes = figure.add_subplot(grid[1, 2 * place : 2 * place + 2])
        _show(axes, generated[step], f"same noise, step {step}", columns)
    save_figure(path, figure)


def _show(axes: Axes, images: Tensor, title: str, columns: int) -> None:
    axes.imshow(tile(images, columns).numpy())
    axes.set_title(title, fontsize=16)
    axes.set_axis_off()
