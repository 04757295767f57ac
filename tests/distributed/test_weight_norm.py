"""Weight norm over many ranks: DDP, FSDP2, a tensor-parallel weight."""

from functools import partial

import pytest
import torch
from parallel_models import sharded_is_that_of_the_whole, train_as_the_whole
from torch import nn

from snorm_triton import apply_weight_norm, weight_norm


def trains(way, foreach):
    torch.manual_seed(0)
    layers = nn.Conv1d(3, 5, 3), nn.ReLU(), nn.ConvTranspose1d(5, 2, 4, 2)
    whole = apply_weight_norm(nn.Sequential(*layers), foreach=foreach)
    train_as_the_whole(whole, way, (3, 7), partial(torch.optim.Adam, lr=1e-2))


@pytest.mark.parametrize("foreach", [False, True], ids=["one-by-one", "foreach"])
@pytest.mark.parametrize("way", ["DDP", "FSDP2"])
def test_training(two_ranks, way, foreach):
    two_ranks.run(trains, way, foreach)


def is_that_of_the_whole(shard, dim):
    sharded_is_that_of_the_whole(shard, partial(weight_norm, dim=dim))


@pytest.mark.parametrize("shard", [0, 1])
@pytest.mark.parametrize("dim", [0, 1, None], ids=str)
def test_a_sharded_weight(two_ranks, shard, dim):
    two_ranks.run(is_that_of_the_whole, shard, dim)
