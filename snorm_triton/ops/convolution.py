"""The linear map of a convolution without its bias, on one sample, and its adjoint."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch.nn.functional as F
from torch import Tensor
from torch.nn import grad

from .convolution_geometry import (
    ConvolutionModule,
    Geometry,
    Sizes,
    check_input,
    check_module,
    geometry_of,
)
from .padding import Pairs, pad, pad_adjoint, zero_pad

_CONVOLVE = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSE = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_WEIGHT_GRADIENT = (grad.conv1d_weight, grad.conv2d_weight, grad.conv3d_weight)


class Convolution:
    """A convolution without its bias as a linear map from images to images.

    A transposed convolution is the adjoint of a convolution, in which its output padding crops
    the input's end. All methods are differentiable, and take any number of leading dimensions.

    Args:
        weight: shape (O, I / groups, *kernel); (I, O / groups, *kernel) where transposed.
        geometry: the rest.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from snorm_triton.ops.convolution import Convolution
        >>> conv = Convolution.of(nn.Conv2d(3, 8, 3, stride=2, bias=False), (3, 9, 9))
        >>> conv.output_shape
        (8, 4, 4)
        >>> conv.adjoint(torch.ones(8, 4, 4)).shape
        torch.Size([3, 9, 9])
    """

    def __init__(self, weight: Tensor, geometry: Geometry) -> None:
        self.weight = weight
        self.geometry = geometry
        self.input_shape = geometry.input_shape
        self.kernel = tuple(weight.shape[2:])
        spatial = geometry.input_shape[1:]
        if geometry.transposed:
            channels = weight.shape[1] * geometry.groups
            ends = zip(geometry.padding, geometry.output_padding, strict=True)
            self.padding: Pairs = tuple((b, a - extra) for (b, a), extra in ends)
            image = self._transposed_sizes(spatial)
        else:
            channels = weight.shape[0]
            self.padding = geometry.padding
            image = self._sizes(spatial)
        self.output_shape: Sizes = (channels, *image)
        # Where it is transposed, the convolution that it is the adjoint of goes from its output.
        self.image = image if geometry.transposed else spatial
        in_convolution = [
            max(0, min(pair)) if geometry.padding_mode == "zeros" else 0 for pair in self.padding
        ]
        self._inner = tuple(in_convolution)
        self._outer: Pairs = tuple(
            (b - p, a - p) for (b, a), p in zip(self.padding, in_convolution, strict=True)
        )

    @classmethod
    def of(
        cls,
        module: ConvolutionModule,
        input_shape: Sequence[int],
        weight: Tensor | None = None,
    ) -> Convolution:
        """The map of a torch module, for inputs of shape (C, *spatial).

        Args:
            module: a Conv1d to Conv3d or a ConvTranspose1d to ConvTranspose3d.
            input_shape: (C, *spatial), without the batch.
            weight: in place of ``module.weight``, which may be computed at each access.

        Raises:
            TypeError: ``module`` is no convolution.
            ValueError: ``input_shape`` has another rank or number of channels than the module
                takes, or too small an image; or the module has not seen its first input yet.
        """
        check_module(module)
        weight = module.weight if weight is None else weight
        check_input(module, input_shape, weight)
        shape = tuple(int(size) for size in input_shape)
        linear_map = cls(weight, geometry_of(module, shape, tuple(weight.shape[2:])))
        linear_map._check_size()
        return linear_map

    def forward(self, v: Tensor) -> Tensor:
        """``conv(v)`` of shape ``output_shape``, for ``v`` of shape ``input_shape``."""
        x = _batch(v, self.input_shape)
        y = self._transpose(x) if self.geometry.transposed else self._convolve(x)
        return _unbatch(y, v, self.input_shape)

    def adjoint(self, u: Tensor) -> Tensor:
        """``conv^H(u)`` of shape ``input_shape``, for ``u`` of shape ``output_shape``."""
        y = _batch(u.conj(), self.output_shape)
        x = self._convolve(y) if self.geometry.transposed else self._transpose(y)
        return _unbatch(x, u, self.output_shape).conj()

    def inner(self, u: Tensor, v: Tensor) -> Tensor:
        """``<u, conv(v)>`` of shape (), for one ``u`` and one ``v``."""
        product: Tensor = (u.conj() * self.forward(v)).sum()
        return product

    def weight_gradient(self, u: Tensor, v: Tensor) -> Tensor:
        """The gradient of ``<u, conv(v)>``, summed over leading dimensions, in the weight."""
        if u.is_complex():
            raise NotImplementedError("torch has no weight gradient of a complex convolution")
        x, y = (u, v) if self.geometry.transposed else (v, u)
        x = self._pad(x.reshape(-1, *self._shapes()[0]))
        y = y.reshape(-1, *self._shapes()[1])
        g = self.geometry
        compute = _WEIGHT_GRADIENT[len(self.kernel) - 1]
        size = list(self.weight.shape)
        gradient: Tensor = compute(x, size, y, g.stride, self._inner, g.dilation, g.groups)
        return gradient

    def _shapes(self) -> tuple[Sizes, Sizes]:
        """Those of the input and the output of the convolution, transposed or not."""
        shapes = (self.input_shape, self.output_shape)
        return shapes[::-1] if self.geometry.transposed else shapes

    def _convolve(self, x: Tensor) -> Tensor:
        g = self.geometry
        convolve = _CONVOLVE[len(self.kernel) - 1]
        return convolve(
            self._pad(x), self.weight, None, g.stride, self._inner, g.dilation, g.groups
        )

    def _transpose(self, y: Tensor) -> Tensor:
        g = self.geometry
        padded = [n + b + a for n, (b, a) in zip(self.image, self._outer, strict=True)]
        covered = self._covered(tuple(y.shape[2:]))
        rest = tuple(
            size + 2 * p - full for size, p, full in zip(padded, self._inner, covered, strict=True)
        )
        transpose = _TRANSPOSE[len(self.kernel) - 1]
        x = transpose(y, self.weight, None, g.stride, self._inner, rest, g.groups, g.dilation)
        if g.padding_mode == "zeros":
            return zero_pad(x, tuple((-b, -a) for b, a in self._outer))
        return pad_adjoint(x, self._outer, g.padding_mode)

    def _pad(self, x: Tensor) -> Tensor:
        return pad(x, self._outer, self.geometry.padding_mode)

    def _covered(self, sizes: Sizes) -> list[int]:
        """How many padded positions so many outputs of a convolution see."""
        g = self.geometry
        steps = zip(sizes, g.stride, g.dilation, self.kernel, strict=True)
        return [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in steps]

    def _sizes(self, spatial: Sizes) -> Sizes:
        """The output's, where it is a convolution."""
        seen = self._covered((1,) * len(spatial))
        steps = zip(spatial, self.padding, seen, self.geometry.stride, strict=True)
        return tuple((n + b + a - one) // s + 1 for n, (b, a), one, s in steps)

    def _transposed_sizes(self, spatial: Sizes) -> Sizes:
        """The output's, where it is transposed."""
        covered = self._covered(spatial)
        return tuple(n - b - a for n, (b, a) in zip(covered, self.padding, strict=True))

    def _check_size(self) -> None:
        mode, given = self.geometry.padding_mode, self.input_shape
        for n, pair, out in zip(given[1:], self.padding, self.output_shape[1:], strict=True):
            largest = {"circular": n, "reflect": n - 1}.get(mode, max(pair))
            if n < 1 or out < 1 or max(pair) > largest:
                why = "its output is empty" if n < 1 or out < 1 else f"{mode} padding needs more"
                raise ValueError(f"input_shape is too small for this convolution: {given}, {why}")


def _batch(x: Tensor, shape: Sizes) -> Tensor:
    """With one leading dimension before those of ``shape``."""
    return x.reshape(prod(x.shape[: x.ndim - len(shape)]), *shape)


def _unbatch(result: Tensor, x: Tensor, shape: Sizes) -> Tensor:
    """With the leading dimensions that ``x`` has."""
    return result.reshape(*x.shape[: x.ndim - len(shape)], *result.shape[1:])
