"""On which torus, and at how many frequencies, the norm of a convolution is bounded.

A convolution, in each spatial dimension, is part of one on a torus or on the infinite grid:

- zeros around an image: of one on a torus that holds image and kernel, and on any larger one;
- an image that is a torus itself (circular): of one on that torus;
- a stride s: of one without a stride, on s times as many input channels, the phases of the image.

The infinite grid has a continuum of frequencies. The symbol between fixed vectors is, up to a
phase, a function of exponential type t = (k - 1) / 2 in each frequency, and real there: such a
function falls from its largest value no faster than cos(t x) does (Duffin and Schaeffer 1938;
Ehlich and Zeller 1964 for polynomials). At n equidistant frequencies, pi / n at most from it, it is
still cos((k - 1) pi / 2n) of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, cos, gcd, pi, sqrt

import torch.nn.functional as F
from torch import Tensor

DENSITY = 12  # frequencies for each tap beyond the first: a loss of 0.9 % in each dimension


@dataclass(frozen=True)
class Axis:
    """One spatial dimension of a convolution, transposed or not.

    n: the image's size on the side of the convolution's input; None where it is not known.
    """

    n: int | None
    kernel: int
    stride: int
    dilation: int
    padding: tuple[int, int]
    mode: str

    @property
    def span(self) -> int:
        return self.dilation * (self.kernel - 1)

    @property
    def phases(self) -> int:
        """The stride that the torus takes whole; 1 where it does not, and rows are left out."""
        if self.mode == "circular" and (self.n is None or self.n % self.stride):
            return 1
        return self.stride

    @property
    def taps(self) -> int:
        """Those of the kernel of :func:`polyphase`."""
        return self.kernel if self.phases == 1 else self.span // self.phases + 1

    def grid(self) -> tuple[int, float]:
        """How many frequencies, and what the largest of them may be below the supremum by."""
        many = max(1, DENSITY * (self.taps - 1))
        torus = self._torus()
        if torus is not None and torus <= many:
            return torus, 1.0
        return many, 1 / cos((self.taps - 1) * pi / (2 * many))

    def _torus(self) -> int | None:
        if self.n is None:
            return None
        if self.mode == "circular":
            return self.n // (gcd(self.n, self.dilation) if self.phases == 1 else self.phases)
        extent = self.n + self.span + (0 if self.mode == "zeros" else sum(self.padding))
        return ceil(extent / (self.dilation if self.phases == 1 else self.phases))

    def repetition(self) -> float:
        """The norm of what repeats pixels of the image, or outputs of the torus."""
        if self.mode == "zeros":
            return 1.0
        if self.mode == "circular":
            return sqrt(self._turns())
        before, after = self.padding
        smallest = max(before, after) + 1 if self.mode == "reflect" else 1
        several = before + after + 2  # in larger images the two ends do not meet
        sizes = range(smallest, several + 1) if self.n is None else [min(self.n, several)]
        return sqrt(max(_most_repeated(n, self.padding, self.mode) for n in sizes))

    def _turns(self) -> int:
        """How often the outputs go around the torus."""
        excess = sum(self.padding) - self.span
        if excess <= 0:
            return 1
        if self.n is None:  # at least as large as its padding
            return 1 + ceil(excess / max(*self.padding, 1))
        outputs = (self.n + excess - 1) // self.stride + 1
        return ceil(outputs / (self.n // gcd(self.n, self.stride)))


def _most_repeated(n: int, padding: tuple[int, int], mode: str) -> int:
    """How often the padding of n pixels shows the one that it shows most often."""
    counts = [0] * n
    for place in range(-padding[0], n + padding[1]):
        if mode == "reflect":
            place = n - 1 - abs(n - 1 - abs(place))
        counts[min(max(place, 0), n - 1)] += 1
    return max(counts)


def polyphase(kernels: Tensor, axes: list[Axis]) -> Tensor:
    """The kernels of the same convolution without strides, on the phases of its input.

    Shape (groups, O, I, *kernel) in, (groups, O, I * phases, *taps) out.
    """
    for place, axis in enumerate(axes, 3):
        if axis.phases == 1:
            continue
        taps = kernels.movedim(place, -1).unsqueeze(-1)
        spread = F.pad(taps, (0, axis.dilation - 1)).flatten(-2)[..., : axis.span + 1]
        spread = F.pad(spread, (0, -spread.shape[-1] % axis.phases))
        phases = spread.unflatten(-1, (axis.taps, axis.phases))
        kernels = phases.movedim(-1, 3).flatten(2, 3).movedim(-1, place)
    return kernels
