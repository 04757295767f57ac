"""Where W v is zero and W is not, the iteration goes on from another vector."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from snorm_triton import reference, spectral_norm
from snorm_triton.functional import spectral_normalize

SHAPES = [(2, 2), (70, 300), (300, 3)]
DTYPES = [torch.float32, torch.bfloat16, torch.float64]
LONG = ((3, 16400), torch.float32)  # rows in chunks, of which the dtype is no matter


@pytest.mark.parametrize(("shape", "dtype"), [*product(SHAPES, DTYPES), LONG], ids=str)
def test_a_weight_that_takes_v_to_zero_is_gone_on_with_from_another_vector(shape, dtype, backend):
    weight = torch.zeros(shape)
    weight[-1, -1] = 5.0
    wide = torch.promote_types(dtype, torch.float32)
    u, v = (torch.eye(1, size, dtype=wide)[0] for size in shape)
    for _ in range(2):
        ours = spectral_normalize(weight.to(dtype), u, v, backend=backend)
        assert ours.sigma > 0
        u, v = ours.u, ours.v
    assert torch.allclose(ours.sigma, torch.tensor(5.0, dtype=wide), rtol=1e-6)
    norm = torch.linalg.matrix_norm(ours.weight_sn.float(), 2)
    assert torch.allclose(norm, torch.ones(()), rtol=1e-2)
    assert torch.allclose(torch.stack([u.norm(), v.norm()]), torch.ones(2, dtype=wide))


@pytest.mark.parametrize("scale", [1e-30, 1e-36])
def test_rows_of_zeros_do_not_count_beside_tiny_ones(scale, backend, relative_error):
    weight = torch.randn(300, 200) * scale
    weight[40:] = 0
    u, v = (F.normalize(torch.randn(size), dim=0) for size in (300, 200))
    ours = spectral_normalize(weight, u, v, backend=backend)
    expected = reference.spectral_normalize(weight, u, v)
    assert relative_error(ours.sigma, expected.sigma) < 1e-4
    assert relative_error(ours.weight_sn, expected.weight_sn) < 1e-4
    assert relative_error(ours.u, expected.u) < 1e-4


def test_a_constant_weight_that_takes_v_to_zero_is_normalized(backend):
    u, v = (F.normalize(torch.tensor([1.0, -1.0]), dim=0) for _ in range(2))
    for _ in range(2):
        ours = spectral_normalize(torch.ones(2, 2), u, v, backend=backend)
        u, v = ours.u, ours.v
    assert torch.allclose(ours.sigma, torch.tensor(2.0))


def test_a_pruned_weight_is_normalized_again(backend):
    layer = spectral_norm(nn.Linear(2, 2, bias=False), backend=backend)
    original = layer.parametrizations.weight.original
    for diagonal in ([1.0, 0.0], [0.0, 5.0], [3.0, 0.0]):
        with torch.no_grad():
            original.copy_(torch.diag(torch.tensor(diagonal)))
        for _ in range(3):
            layer(torch.ones(1, 2))
        assert torch.allclose(layer.weight.norm(), torch.ones(()))
