"""What docs/lipschitz.md says of the reshaped matrix."""

from __future__ import annotations

from math import ceil, prod, sqrt

import pytest
import torch
from torch import Tensor, nn

from convolutions import ZERO_PADDED, Kind, dense, identify


def reshaped(module: nn.Module) -> Tensor:
    """What spectral normalization divides by."""
    weight = module.weight.detach()
    transposed = "Transpose" in type(module).__name__
    norm: Tensor = torch.linalg.matrix_norm(weight.movedim(int(transposed), 0).flatten(1), 2)
    return norm


def norms(kind: Kind) -> tuple[nn.Module, float]:
    """The module, and its own norm over that of its matrix."""
    module = kind.make()
    own = torch.linalg.matrix_norm(dense(module, kind.input_shape), 2)
    return module, float(own / reshaped(module))


@pytest.mark.parametrize("kind", ZERO_PADDED, ids=identify)
def test_a_convolution_is_within_the_root_of_its_kernels_size(kind: Kind) -> None:
    module, ratio = norms(kind)
    limit = sqrt(prod(module.kernel_size))
    whole_patch = not any(module.padding) or module.padding == "valid"
    if "Transpose" in kind.name:
        assert ratio <= limit
        return
    if all(d == 1 for d in module.dilation):
        overlaps = zip(module.kernel_size, module.stride, strict=True)
        limit = sqrt(prod(ceil(k / s) for k, s in overlaps))
    assert ratio <= limit * (1 + 1e-12)
    if module.groups == 1 and whole_patch:
        assert ratio >= 1 - 1e-12


@pytest.mark.parametrize("name", ["Conv2d-patches", "Conv2d-1x1", "Conv1d-stride-past-kernel"])
def test_patches_side_by_side_have_the_matrixs_norm(name: str) -> None:
    _, ratio = norms(next(kind for kind in ZERO_PADDED if kind.name == name))
    assert ratio == pytest.approx(1)
