"""The parametrization that divides a convolution's weight by the norm of the convolution."""

from __future__ import annotations

from torch import Tensor

from ..ops import modes
from ..ops.calls import Iterate, State
from ..ops.convolution import Convolution
from ..ops.convolution_geometry import Geometry
from ..ops.convolution_iteration import estimate_of_convolution
from ..ops.modes.convolution import OfConvolution
from .base import Originals
from .options import SpectralNormOptions
from .spectral_norm import SpectralNormParametrization


class ConvolutionNormParametrization(SpectralNormParametrization):
    r"""``forward(W) = W / sigma``, sigma the spectral norm of the convolution with ``W``.

    As :class:`SpectralNormParametrization`, but that ``_u`` has the shape of the convolution's
    output for one sample and ``_v`` that of its input, and sigma = <u, conv(v)>: the norm of what
    the layer computes, padding and stride included, and not of its weight read as a matrix. It is
    that of inputs of the shape given, and hardly depends on it where the image is much larger than
    the kernel.

    Args:
        weight: of a convolution, transposed or not, as it is now.
        geometry: what the convolution does with it.
        options: those of :func:`snorm_triton.spectral_norm`.
        vectors: u and v to go on from, as they are, in place of random ones and iterations.
    """

    def __init__(
        self,
        weight: Tensor,
        geometry: Geometry,
        options: SpectralNormOptions,
        *,
        vectors: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.geometry = geometry  # first: the shapes of u and v follow from it
        super().__init__(weight, options, vectors=vectors)

    def joins(self, originals: Originals) -> bool:
        """Never: each is a convolution of its own."""
        return False

    def mode(self, weight: Tensor) -> modes.Mode:
        """The way of an access to ``weight`` here and now."""
        return OfConvolution(self.geometry)

    def _shapes(self, weight: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
        convolution = Convolution(weight, self.geometry)
        return convolution.output_shape, convolution.input_shape

    def _iterated(self, weight: Tensor, u: Tensor, v: Tensor, n_power_iterations: int) -> State:
        step = Iterate(n_power_iterations)
        return estimate_of_convolution(self.geometry, weight.to(u.dtype), u, v, step)
