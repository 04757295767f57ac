"""What a convolution module of torch does with its weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .padding import Pairs

Sizes = tuple[int, ...]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
ConvolutionModule = (
    nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
)


@dataclass(frozen=True)
class Geometry:
    """What a convolution does with its weight: all but the numbers in it."""

    input_shape: Sizes  # (C, *spatial)
    stride: Sizes
    padding: Pairs
    dilation: Sizes
    output_padding: Sizes  # zeros, but where transposed
    groups: int = 1
    padding_mode: str = "zeros"  # or "circular", "reflect", "replicate"
    transposed: bool = False


def check_module(module: nn.Module) -> None:
    """TypeError or ValueError where it is none, or is lazy still."""
    if not isinstance(module, CONVOLUTIONS + TRANSPOSED):
        raise TypeError(f"module must be a convolution of torch, got {type(module).__name__}")
    weight = module._parameters.get("weight")
    if weight is not None and is_lazy(weight):
        raise ValueError(f"module must have seen its first input, {type(module).__name__} has not")


def check_input(module: ConvolutionModule, input_shape: Sequence[int], weight: Tensor) -> None:
    """ValueError where it takes no such input."""
    rank = weight.ndim - 1
    if len(input_shape) != rank:
        raise ValueError(
            f"input_shape must have {rank} sizes for {type(module).__name__}, (C, *spatial) "
            f"without the batch, got {tuple(input_shape)}"
        )
    # Of a lazy module, its own number is known with the first output.
    channels = (
        weight.shape[0] if isinstance(module, TRANSPOSED) else weight.shape[1] * module.groups
    )
    if input_shape[0] != channels:
        raise ValueError(
            f"input_shape must begin with {channels} channels, got {tuple(input_shape)}"
        )


def geometry_of(module: ConvolutionModule, input_shape: Sizes, kernel: Sizes) -> Geometry:
    """That of a module for inputs of this shape."""
    if isinstance(module.padding, str):
        same = module.padding == "same"
        spans = zip(module.dilation, kernel, strict=True)
        totals = [d * (k - 1) if same else 0 for d, k in spans]
        padding: Pairs = tuple((total // 2, total - total // 2) for total in totals)
    else:
        padding = tuple((p, p) for p in module.padding)
    return Geometry(
        input_shape,
        tuple(module.stride),
        padding,
        tuple(module.dilation),
        tuple(module.output_padding),
        module.groups,
        module.padding_mode,
        isinstance(module, TRANSPOSED),
    )
