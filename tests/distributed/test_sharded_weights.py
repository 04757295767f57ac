"""A weight that is a DTensor is normalized as the whole weight is, shard by shard."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.testing import assert_close

from snorm_triton import backend_report, remove_spectral_norm, spectral_norm
from snorm_triton.functional import spectral_normalize

ROUNDING = {"rtol": 1e-5, "atol": 1e-6}


def same_on_every_rank(*tensors):
    for tensor in tensors:
        gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, tensor.detach().contiguous())
        assert all(torch.equal(gathered[0], other) for other in gathered), tensor


def unit(*size, **options):
    return nn.functional.normalize(torch.randn(*size, **options), dim=0)


def channels_last(weight):
    return weight.to(memory_format=torch.channels_last)


# shape, dim, sharded dim, layout
WEIGHTS = {
    "linear rows": ((6, 4), 0, 0, torch.clone),
    "linear columns": ((6, 4), 0, 1, torch.clone),
    "linear rows uneven": ((5, 3), 0, 0, torch.clone),
    "linear columns uneven": ((4, 7), 0, 1, torch.clone),
    "linear rows on one rank alone": ((1, 3), 0, 0, torch.clone),
    "linear columns on one rank alone": ((3, 1), 0, 1, torch.clone),
    "transposed in memory": ((6, 4), 0, 1, lambda w: w.t().contiguous().t()),
    "conv outputs": ((5, 3, 2, 2), 0, 0, torch.clone),
    "conv inputs": ((5, 3, 2, 2), 0, 1, torch.clone),
    "conv channels_last inputs": ((5, 4, 3, 2), 0, 1, channels_last),
    "conv transposed outputs": ((5, 3, 2, 2), 1, 1, torch.clone),
    "conv transposed inputs": ((5, 3, 2, 2), 1, 0, torch.clone),
    "conv transposed channels_last": ((5, 4, 3, 2), 1, 1, channels_last),
    "conv kernel": ((4, 3, 5), 0, 2, torch.clone),
}


def as_the_whole(mesh_shape, placements, shape, dim, layout, iterations=1, dtype=torch.float32):
    mesh = init_device_mesh("cpu", mesh_shape)
    weight = layout(torch.randn(shape, dtype=dtype)).requires_grad_()
    sharded = distribute_tensor(weight.detach(), mesh, placements).requires_grad_()
    state = torch.promote_types(dtype, torch.float32)
    u = unit(shape[dim], dtype=state)
    v = unit(weight.numel() // shape[dim], dtype=state)
    options = {"dim": dim, "n_power_iterations": iterations}
    ours, whole = (spectral_normalize(w, u, v, **options) for w in (sharded, weight))
    assert isinstance(ours.weight_sn, DTensor)
    assert ours.weight_sn.placements == sharded.placements
    assert ours.weight_sn.dtype == dtype
    same_on_every_rank(ours.u, ours.v, ours.sigma)
    factor = torch.randn(shape, dtype=dtype)
    tolerance = {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.bfloat16 else ROUNDING
    for a, b in zip(ours[1:], whole[1:], strict=True):
        assert_close(a, b, **ROUNDING)
    assert_close(ours.weight_sn.full_tensor(), whole.weight_sn, **tolerance)
    for x, scale in (
        (ours.weight_sn, distribute_tensor(factor, mesh, placements)),
        (whole.weight_sn, factor),
    ):
        loss = (x * scale).abs().sum()
        (loss.full_tensor() if isinstance(loss, DTensor) else loss).backward(retain_graph=True)
    assert isinstance(sharded.grad, DTensor)
    assert sharded.grad.placements == sharded.placements
    assert_close(sharded.grad.full_tensor(), weight.grad, **tolerance)
    sharded.grad = weight.grad = None
    ours.sigma.abs().backward()
    whole.sigma.abs().backward()
    assert_close(sharded.grad.full_tensor(), weight.grad, **tolerance)


def all_as_the_whole():
    import time; t0=time.time()
    for name, (shape, dim, sharded_dim, layout) in WEIGHTS.items():
        for iterations in (0, 1, 3):
            try:
                as_the_whole(
                    (dist.get_world_size(),), [Shard(sharded_dim)], shape, dim, layout, iterations
                )
            except Exception as error:
                error.add_note(f"{name}, {iterations} iterations")
                raise
    return time.time()-t0


def test_layouts_and_uneven_shards(two_ranks, four_ranks):
    import time
    for w in two_ranks, four_ranks:
        t0=time.time()
        r = w.run(all_as_the_whole)
        print(time.time()-t0, r)


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float64, torch.complex64], ids=lambda d: str(d)[6:]
)
@pytest.mark.parametrize("sharded_dim", [0, 1])
def test_dtypes(two_ranks, dtype, sharded_dim):
    two_ranks.run(as_the_whole, (2,), [Shard(sharded_dim)], (6, 5), 0, torch.clone, 1, dtype)
