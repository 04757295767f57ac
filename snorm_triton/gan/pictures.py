"""The two pictures of the demo: what the generator draws, and the singular values meanwhile."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

from .singular_values import TopSingularValues

ZOOM, MARGIN = 8, 10


def tile(images: Tensor, columns: int) -> Tensor:
    """Images (N, 1, H, W) in [-1, 1], N a multiple of `columns`, as one picture (rows, columns).

    Each is enlarged by `ZOOM` (bicubic) and keeps a margin of `MARGIN` pixels of background.
    """
    large = functional.interpolate(images, scale_factor=ZOOM, mode="bicubic").clamp(-1, 1)
    framed = functional.pad(large, [MARGIN] * 4, value=-1.0)
    rows = framed.reshape(-1, columns, *framed.shape[2:])  # [rows, columns, H, W]
    return rows.transpose(1, 2).flatten(2).flatten(0, 1)


def draw_samples(
    path: Path, real: Tensor, generated: Mapping[int, Tensor], *, columns: int
) -> None:
    """Real images beside the generated ones of the last step, and below them the earlier ones.

    `generated` is by step. All are (N, 1, H, W), one class a column.
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
    figure.savefig(path, dpi=100)


def _show(axes: Axes, images: Tensor, title: str, columns: int) -> None:
    axes.imshow(tile(images, columns).numpy(), cmap="gray_r", vmin=-1, vmax=1)
    axes.set_title(title, fontsize=16)
    axes.set_axis_off()


def draw_sigma(
    path: Path, steps: Sequence[int], measured: Sequence[Mapping[str, TopSingularValues]]
) -> None:
    """Each layer's largest singular value over the steps: raw weight above, normalized below."""
    figure = Figure(figsize=(12, 8), layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    for number, layer in enumerate(measured[0]):
        style = "-" if number < 10 else "--"  # matplotlib has ten colors
        above.plot(steps, [row[layer].raw for row in measured], style, label=layer)
        below.plot(steps, [row[layer].normalized for row in measured], style)
    below.axhline(1.0, color="black", linewidth=0.8)
    largest = max(values.normalized for row in measured for values in row.values())
    below.set_ylim(0.9, max(1.1, 1.02 * largest))
    above.set_title("largest singular value of the raw weight")
    below.set_title("largest singular value of the weight in use (SVD): 1 is exact normalization")
    below.set_xlabel("generator step")
    figure.legend(loc="outside right upper", title="layer")
    figure.savefig(path, dpi=100)
