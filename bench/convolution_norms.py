"""A convolution's own norm over that of its reshaped matrix, layer by layer, as a Markdown table.

`python -m bench.convolution_norms` writes it to docs/lipschitz.md; ten seconds on one core.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from snorm_triton.lipschitz import conv_norm, conv_norm_bound

PAGE = Path(__file__).parents[1] / "docs" / "lipschitz.md"
BEGIN, END = "<!-- bench.convolution_norms -->\n", "<!-- end -->\n"


def constant(weight: Tensor) -> Tensor:
    """One sign everywhere: what a blur has."""
    return nn.init.ones_(weight)


def drawn(weight: Tensor) -> Tensor:
    """What torch initializes with."""
    return weight


def low_rank(weight: Tensor) -> Tensor:
    """One pattern for all pairs of channels, the same at each place but for noise."""
    with torch.no_grad():
        return weight.copy_(1 + 0.3 * torch.randn_like(weight))


LAYERS: list[tuple[str, Callable[[], nn.Module], tuple[int, ...], Callable[[Tensor], Tensor]]] = [
    ("Conv2d 1x1, 64 to 64", lambda: nn.Conv2d(64, 64, 1), (64, 16, 16), drawn),
    ("Conv2d 4x4, stride 4, 3 to 96", lambda: nn.Conv2d(3, 96, 4, 4), (3, 32, 32), drawn),
    ("Conv2d 3x3, 3 to 64", lambda: nn.Conv2d(3, 64, 3, padding=1), (3, 32, 32), drawn),
    ("Conv2d 3x3, 64 to 64", lambda: nn.Conv2d(64, 64, 3, padding=1), (64, 16, 16), drawn),
    (
        "Conv2d 3x3, 64 to 64, circular",
        lambda: nn.Conv2d(64, 64, 3, padding=1, padding_mode="circular"),
        (64, 16, 16),
        drawn,
    ),
    (
        "Conv2d 3x3, 64 to 64, reflect",
        lambda: nn.Conv2d(64, 64, 3, padding=1, padding_mode="reflect"),
        (64, 16, 16),
        drawn,
    ),
    (
        "Conv2d 3x3, 64 to 64, dilation 2",
        lambda: nn.Conv2d(64, 64, 3, padding=2, dilation=2),
        (64, 16, 16),
        drawn,
    ),
    ("Conv2d 4x4, stride 2, 64 to 128", lambda: nn.Conv2d(64, 128, 4, 2, 1), (64, 16, 16), drawn),
    ("Conv2d 7x7, stride 2, 3 to 64", lambda: nn.Conv2d(3, 64, 7, 2, 3), (3, 32, 32), drawn),
    (
        "Conv2d 7x7, depthwise, 96",
        lambda: nn.Conv2d(96, 96, 7, padding=3, groups=96),
        (96, 16, 16),
        drawn,
    ),
    ("Conv1d 9, 64 to 64", lambda: nn.Conv1d(64, 64, 9, padding=4), (64, 128), drawn),
    ("Conv3d 3x3x3, 16 to 16", lambda: nn.Conv3d(16, 16, 3, padding=1), (16, 8, 8, 8), drawn),
    (
        "ConvTranspose2d 4x4, stride 2, 128 to 64",
        lambda: nn.ConvTranspose2d(128, 64, 4, 2, 1),
        (128, 8, 8),
        drawn,
    ),
    (
        "Conv2d 3x3, 8 to 8, near a constant",
        lambda: nn.Conv2d(8, 8, 3, padding=1),
        (8, 32, 32),
        low_rank,
    ),
    ("Conv2d 3x3, 1 to 1, constant", lambda: nn.Conv2d(1, 1, 3, padding=1), (1, 64, 64), constant),
]


def matrix_norm(layer: nn.Module) -> Tensor:
    """Of the matrix that spectral normalization divides by."""
    weight = layer.weight.detach()
    rows = weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else weight
    norm: Tensor = torch.linalg.matrix_norm(rows.flatten(1), 2)
    return norm


@torch.no_grad()
def rows() -> list[str]:
    """One line for each layer."""
    lines = [
        "| layer | image | own norm / matrix | root of the kernel's size | bound / own norm "
        "| unfolding / own norm |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, make, shape, fill in LAYERS:
        torch.manual_seed(0)
        layer = make()
        fill(layer.weight)
        norm = conv_norm(layer, shape)
        ratio = float(norm / matrix_norm(layer))
        kernel = layer.weight[0, 0].numel() ** 0.5
        bound = float(conv_norm_bound(layer, shape) / norm)
        unfolding = float(conv_norm_bound(layer, shape, method="unfolding") / norm)
        image = " x ".join(map(str, shape[1:]))
        lines.append(
            f"| {name} | {image} | {ratio:.2f} | {kernel:.2f} | {bound:.3f} | {unfolding:.2f} |"
        )
    return lines


def main() -> None:
    """Write the table into the page."""
    table = "\n".join(rows()) + "\n"
    print(table)
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}{table}{END}{after}")


if __name__ == "__main__":
    main()
