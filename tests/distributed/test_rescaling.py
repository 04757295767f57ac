"""A bound and a learned scale over many ranks: DDP, FSDP2, a tensor-parallel weight."""

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

from snorm_triton import apply_spectral_norm, spectral_norm

ROUNDING = {"rtol": 1e-5, "atol": 1e-6}
OPTIONS = [{"bound": 0.3, "scale": 2.0}, {"scale": "learned"}, {"bound": 0.3, "scale": "learned"}]


def model(foreach, options):
    torch.manual_seed(0)
    layers = nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)
    return apply_spectral_norm(nn.Sequential(*layers), foreach=foreach, **options)


def plain(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def trains_as_the_whole(way, foreach, options):
    whole = model(foreach, options)
    replica = copy.deepcopy(whole)
    if way == "DDP":
        parallel = DistributedDataParallel(replica)
    else:
        fully_shard(replica[0])
        parallel = fully_shard(replica)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (replica, whole)]
    torch.manual_seed(1)
    for _ in range(3):
        x = torch.randn(2 * ranks, 6)
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


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("way", "foreach"), [("DDP", True), ("FSDP2", False), ("FSDP2", True)])
def test_training(two_ranks, way, foreach, options):
    two_ranks.run(trains_as_the_whole, way, foreach, options)


def is_that_of_the_whole(shard, options):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    torch.manual_seed(2)
    whole = nn.Linear(6, 4)
    parallel = copy.deepcopy(whole)
    parallel.weight = nn.Parameter(
        distribute_tensor(parallel.weight.detach(), mesh, [Shard(shard)])
    )
    for layer in (whole, parallel):
        torch.manual_seed(3)
        spectral_norm(layer, **options)
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
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_sharded_weight(two_ranks, shard, options):
    two_ranks.run(is_that_of_the_whole, shard, options)


def second_derivatives_are_refused():
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    layer = nn.Linear(6, 4)
    layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), mesh, [Shard(0)]))
    spectral_norm(layer, scale="learned")
    original = layer.parametrizations.weight.original
    loss = layer.weight.to_local().square().sum()
    with pytest.raises(RuntimeError, match="sharded weight with scale='learned'"):
        torch.autograd.grad(loss, original, create_graph=True)


def test_second_derivatives_are_refused(two_ranks):
    two_ranks.run(second_derivatives_are_refused)
