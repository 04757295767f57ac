"""Weight norm over many ranks: DDP, FSDP2, a tensor-parallel weight."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from snorm_triton import apply_weight_norm, weight_norm

ROUNDING = {"rtol": 1e-5, "atol": 1e-6}


def model(foreach):
    torch.manual_seed(0)
    return apply_weight_norm(
        nn.Sequential(nn.Conv1d(3, 5, 3), nn.ReLU(), nn.ConvTranspose1d(5, 2, 4, 2)),
        foreach=foreach,
    )


def plain(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def trains_as_the_whole(way, foreach):
    whole = model(foreach)
    replica = copy.deepcopy(whole)
    if way == "DDP":
        parallel = DistributedDataParallel(replica)
    else:
        fully_shard(replica[0])
        parallel = fully_shard(replica)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    optimizers = [torch.optim.Adam(each.parameters(), lr=1e-2) for each in (replica, whole)]
    torch.manual_seed(1)
    for _ in range(3):
        x = torch.randn(2 * ranks, 3, 7)
        for run, part, optimizer in (
            (parallel, slice(2 * rank, 2 * rank + 2), optimizers[0]),
            (whole, slice(None), optimizers[1]),
        ):
            optimizer.zero_grad()
            run(x[part]).square().mean().backward()
        for ours, theirs in zip(replica.parameters(), whole.parameters(), strict=True):
            assert_close(plain(ours.grad), theirs.grad, **ROUNDING)
        for optimizer in optimizers:
            optimizer.step()
    for key, value in replica.state_dict().items():
        assert_close(plain(value), whole.state_dict()[key], **ROUNDING)


@pytest.mark.parametrize("foreach", [False, True], ids=["one-by-one", "foreach"])
@pytest.mark.parametrize("way", ["DDP", "FSDP2"])
def test_training(two_ranks, way, foreach):
    two_ranks.run(trains_as_the_whole, way, foreach)


def is_that_of_the_whole(shard, dim):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    torch.manual_seed(2)
    whole = nn.Linear(6, 4)
    parallel = copy.deepcopy(whole)
    parallel.weight = nn.Parameter(
        distribute_tensor(parallel.weight.detach(), mesh, [Shard(shard)])
    )
    weight_norm(whole, dim=dim), weight_norm(parallel, dim=dim)
    grad = torch.randn(4, 6)
    for layer, of_layer in (
        (whole, grad),
        (parallel, distribute_tensor(grad, mesh, [Shard(shard)])),
    ):
        layer.weight.backward(of_layer)
    assert_close(plain(parallel.weight), whole.weight)
    for ours, theirs in zip(
        parallel.parametrizations.weight.parameters(),
        whole.parametrizations.weight.parameters(),
        strict=True,
    ):
        assert_close(plain(ours.grad), theirs.grad)


@pytest.mark.parametrize("shard", [0, 1])
@pytest.mark.parametrize("dim", [0, 1, None], ids=str)
def test_a_sharded_weight(two_ranks, shard, dim):
    two_ranks.run(is_that_of_the_whole, shard, dim)
