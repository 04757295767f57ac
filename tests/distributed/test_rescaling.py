"""A bound and a learned scale over many ranks: DDP, FSDP2, a tensor-parallel weight."""

from functools import partial

import pytest
import torch
import torch.distributed as dist
from parallel_models import sharded_is_that_of_the_whole, train_as_the_whole
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from snorm_triton import apply_spectral_norm, spectral_norm

OPTIONS = [{"bound": 0.3, "scale": 2.0}, {"scale": "learned"}, {"bound": 0.3, "scale": "learned"}]


def trains(way, foreach, options):
    torch.manual_seed(0)
    layers = nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)
    whole = apply_spectral_norm(nn.Sequential(*layers), foreach=foreach, **options)
    train_as_the_whole(whole, way, (6,), partial(torch.optim.SGD, lr=0.1))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("way", "foreach"), [("DDP", True), ("FSDP2", False), ("FSDP2", True)])
def test_training(two_ranks, way, foreach, options):
    two_ranks.run(trains, way, foreach, options)


def is_that_of_the_whole(shard, options):
    sharded_is_that_of_the_whole(shard, partial(spectral_norm, **options))


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
