"""Convolutions of every kind, and the dense matrix of a linear map: what the tests share."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from snorm_triton.ops.convolution import Convolution


class Kind(NamedTuple):
    """A convolution of float64 without bias, and the shape of an input for it."""

    name: str
    make: Callable[[], nn.Module]
    input_shape: tuple[int, ...]


def _kind(name: str, layer: type[nn.Module], sizes: tuple, shape: tuple, **options: object) -> Kind:
    return Kind(name, lambda: layer(*sizes, bias=False, dtype=torch.float64, **options), shape)


C1, C2, C3 = nn.Conv1d, nn.Conv2d, nn.Conv3d
T1, T2, T3 = nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d

ZERO_PADDED = [
    _kind("Conv1d", C1, (3, 4, 3), (3, 16), padding=1),
    _kind("Conv1d-valid", C1, (3, 4, 5), (3, 16), padding="valid"),
    _kind("Conv1d-same-even", C1, (3, 4, 4), (3, 16), padding="same"),
    _kind("Conv1d-stride-3", C1, (2, 5, 7), (2, 25), stride=3, padding=2),
    _kind("Conv1d-stride-past-kernel", C1, (2, 3, 2), (2, 14), stride=4),
    _kind("Conv1d-dilation-3", C1, (3, 3, 3), (3, 24), dilation=3, padding=3),
    _kind("Conv1d-stride-2-dilation-3", C1, (2, 3, 3), (2, 27), stride=2, dilation=3, padding=3),
    _kind("Conv1d-wide-padding", C1, (2, 2, 3), (2, 12), padding=5),
    _kind("Conv2d", C2, (4, 4, 3), (4, 10, 10), padding=1),
    _kind("Conv2d-1x1", C2, (5, 4, 1), (5, 3, 4)),
    _kind("Conv2d-same-even-dilated", C2, (2, 3, (2, 4)), (2, 9, 13), padding="same", dilation=2),
    _kind("Conv2d-stride-2", C2, (3, 4, 3), (3, 12, 12), stride=2, padding=1),
    _kind("Conv2d-stride-uneven", C2, (3, 4, (3, 4)), (3, 11, 12), stride=(2, 3), padding=(1, 2)),
    _kind("Conv2d-patches", C2, (3, 7, 4), (3, 8, 8), stride=4),
    _kind("Conv2d-groups", C2, (4, 6, 3), (4, 9, 9), groups=2, padding=1),
    _kind("Conv2d-depthwise", C2, (4, 8, 5), (4, 14, 14), groups=4, padding=2),
    _kind("Conv3d", C3, (2, 2, 3), (2, 6, 6, 6), padding=1),
    _kind(
        "Conv3d-uneven", C3, (2, 3, (1, 2, 3)), (2, 4, 6, 9), stride=(1, 2, 1), padding=(0, 1, 1)
    ),
    _kind("ConvTranspose1d", T1, (3, 2, 4), (3, 12), stride=2, padding=1),
    _kind("ConvTranspose1d-output-padding", T1, (3, 2, 3), (3, 11), stride=2, output_padding=1),
    _kind(
        "ConvTranspose1d-output-padding-past-stride",
        T1,
        (2, 2, 3),
        (2, 11),
        dilation=4,
        output_padding=3,
        padding=1,
    ),
    _kind("ConvTranspose2d", T2, (4, 3, 4), (4, 6, 6), stride=2, padding=1),
    _kind("ConvTranspose2d-groups", T2, (4, 6, 3), (4, 6, 5), groups=2, stride=(2, 1), dilation=2),
    _kind(
        "ConvTranspose2d-uneven",
        T2,
        (2, 3, (3, 2)),
        (2, 6, 7),
        stride=(3, 2),
        padding=(1, 0),
        output_padding=(2, 1),
    ),
    _kind("ConvTranspose3d", T3, (2, 2, 2), (2, 4, 3, 4), stride=2, output_padding=1),
]

CIRCULAR = [
    _kind("Conv1d-circular", C1, (3, 4, 3), (3, 12), padding=1, padding_mode="circular"),
    _kind(
        "Conv1d-circular-same-even", C1, (2, 3, 4), (2, 9), padding="same", padding_mode="circular"
    ),
    _kind("Conv1d-circular-wide", C1, (2, 2, 3), (2, 7), padding=5, padding_mode="circular"),
    _kind(
        "Conv1d-circular-kernel-past-image",
        C1,
        (2, 2, 7),
        (2, 4),
        padding=3,
        padding_mode="circular",
    ),
    _kind(
        "Conv1d-circular-dilated",
        C1,
        (2, 3, 3),
        (2, 12),
        padding=3,
        dilation=3,
        padding_mode="circular",
    ),
    _kind("Conv2d-circular", C2, (3, 4, 3), (3, 10, 9), padding=1, padding_mode="circular"),
    _kind(
        "Conv2d-circular-stride-2",
        C2,
        (3, 4, 3),
        (3, 8, 6),
        stride=2,
        padding=1,
        padding_mode="circular",
    ),
    _kind(
        "Conv2d-circular-stride-2-odd",
        C2,
        (3, 4, 3),
        (3, 9, 7),
        stride=2,
        padding=1,
        padding_mode="circular",
    ),
    _kind(
        "Conv2d-circular-groups",
        C2,
        (4, 4, 3),
        (4, 8, 8),
        groups=2,
        padding=1,
        padding_mode="circular",
    ),
    _kind("Conv3d-circular", C3, (2, 2, 3), (2, 5, 6, 5), padding=1, padding_mode="circular"),
]

MIRRORED = [
    _kind("Conv1d-reflect", C1, (3, 4, 5), (3, 12), padding=2, padding_mode="reflect"),
    _kind("Conv1d-reflect-tiny", C1, (2, 2, 3), (2, 3), padding=2, padding_mode="reflect"),
    _kind("Conv2d-reflect", C2, (3, 4, 3), (3, 9, 8), padding=1, padding_mode="reflect"),
    _kind(
        "Conv2d-reflect-same-even",
        C2,
        (2, 3, (4, 2)),
        (2, 9, 8),
        padding="same",
        padding_mode="reflect",
    ),
    _kind("Conv3d-reflect", C3, (2, 2, 3), (2, 5, 5, 4), padding=1, padding_mode="reflect"),
    _kind("Conv1d-replicate", C1, (3, 4, 5), (3, 12), padding=2, padding_mode="replicate"),
    _kind(
        "Conv1d-replicate-past-image", C1, (2, 2, 3), (2, 2), padding=4, padding_mode="replicate"
    ),
    _kind(
        "Conv2d-replicate-stride-2",
        C2,
        (3, 4, 3),
        (3, 9, 8),
        stride=2,
        padding=(1, 2),
        padding_mode="replicate",
    ),
    _kind("Conv3d-replicate", C3, (2, 2, 3), (2, 5, 5, 4), padding=1, padding_mode="replicate"),
]

KINDS = ZERO_PADDED + CIRCULAR + MIRRORED


def identify(kind: Kind) -> str:
    return kind.name


def dense(module: nn.Module, input_shape: tuple[int, ...]) -> Tensor:
    """The matrix of a linear module without bias, column by column: each basis vector's image."""
    n = torch.Size(input_shape).numel()
    basis = torch.eye(n, dtype=torch.float64).reshape(n, *input_shape)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using padding='same' with even kernel")
        return module(basis).flatten(1).T


def linear_map(kind: Kind) -> Convolution:
    return Convolution.of(kind.make(), kind.input_shape)
