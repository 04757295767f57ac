"""What the traffic of the kernels is counted of: one weight, or those of a model together."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import nn

from bench.cases import MODELS, Case
from bench.normalizations import SPECTRAL_NORM
from bench.variants import WeightsOf

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Weight:
    """A weight as the kernels see it: shape, dimension of the rows, layout, dtype, and its norm."""

    shape: tuple[int, ...]
    dim: int = 0
    channels_last: bool = False
    dtype: str = "float32"
    constraint: str = SPECTRAL_NORM

    @property
    def elements(self) -> int:
        return prod(self.shape)

    def tensor(self) -> torch.Tensor:
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        layout = formats[len(self.shape)] if self.channels_last else torch.contiguous_format
        weight = torch.randn(self.shape).to(getattr(torch, self.dtype))
        return weight.contiguous(memory_format=layout)


@dataclass(frozen=True)
class Model:
    """The weights of a model of the benchmarks, normalized together."""

    model: str
    dtype: str = "float32"

    @property
    def elements(self) -> int:
        return sum(weight.numel() for weight in self.weights()())

    @property
    def case(self) -> Case:
        (case,) = [case for case in MODELS if case.name == self.model]
        return case

    def weights(self) -> WeightsOf:
        return WeightsOf(self.case.module(torch.device("cpu"), getattr(torch, self.dtype)))


Subject = Weight | Model


def copy_bytes(subject: Subject) -> int:
    """What one copy of it moves."""
    return 2 * subject.elements * getattr(torch, subject.dtype).itemsize


def weight_of(case: Case, dtype: str) -> Weight:
    module = case.module(torch.device("cpu"), getattr(torch, dtype))
    is_transposed = isinstance(module, TRANSPOSED) and case.constraint == SPECTRAL_NORM
    shape = tuple(module.weight.shape)
    return Weight(shape, int(is_transposed), case.channels_last, dtype, case.constraint)
