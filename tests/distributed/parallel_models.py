"""What the tests of a constraint over many ranks share: a model in parallel is as the whole one."""

import copy

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

ROUNDING = {"rtol": 1e-5, "atol": 1e-6}


def plain(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def train_as_the_whole(whole, way, input_shape, make_optimizer):
    """Each rank takes two of the samples; gradients and state are those of all in one process."""
    replica = copy.deepcopy(whole)
    if way == "DDP":
        parallel = DistributedDataParallel(replica)
    else:
        fully_shard(replica[0])
        parallel = fully_shard(replica)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    optimizers = [make_optimizer(each.parameters()) for each in (replica, whole)]
    torch.manual_seed(1)
    for _ in range(3):
        x = torch.randn(2 * ranks, *input_shape)
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


def sharded_is_that_of_the_whole(shard, constrain):
    """The weight of a Linear that is sharded along ``shard``, and its gradients."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    torch.manual_seed(2)
    whole = nn.Linear(6, 4)
    parallel = copy.deepcopy(whole)
    sharded = distribute_tensor(parallel.weight.detach(), mesh, [Shard(shard)])
    parallel.weight = nn.Parameter(sharded)
    for layer in (whole, parallel):
        torch.manual_seed(3)
        constrain(layer)
    grad = torch.randn(4, 6)
    whole.weight.backward(grad)
    parallel.weight.backward(distribute_tensor(grad, mesh, [Shard(shard)]))
    assert_close(plain(parallel.weight), whole.weight)
    for ours, theirs in zip(
        parallel.parametrizations.weight.parameters(),
        whole.parametrizations.weight.parameters(),
        strict=True,
    ):
        assert_close(plain(ours.grad), theirs.grad)
