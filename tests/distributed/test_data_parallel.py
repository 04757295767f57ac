"""DistributedDataParallel and DataParallel: the gradients and the state of the whole batch."""

import copy
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from snorm_triton import apply_spectral_norm, sigmas

ROUNDING = {"rtol": 1e-5, "atol": 1e-6}


def model():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.LeakyReLU(), nn.Flatten(), nn.Linear(64, 5), nn.Linear(5, 1)
    )


def same_on_every_rank(tensor):
    gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, tensor.contiguous())
    assert all(torch.equal(gathered[0], other) for other in gathered)


def trains_as_the_whole(broadcast_buffers, foreach, compiled):
    whole = apply_spectral_norm(model(), foreach=foreach)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    replica = copy.deepcopy(whole)
    if rank > 0:  # DDP starts from the first rank's parameters, and buffers where it is asked to
        for tensor in replica.state_dict().values() if broadcast_buffers else replica.parameters():
            tensor.detach().normal_()
    with warnings.catch_warnings():
        # torch 2.13 calls it forward_sync_buffers, which torch 2.11 does not know.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        parallel = DistributedDataParallel(replica, broadcast_buffers=broadcast_buffers)
    forward = torch.compile(parallel, backend="aot_eager") if compiled else parallel
    optimizers = [torch.optim.Adam(each.parameters(), lr=1e-2) for each in (replica, whole)]
    torch.manual_seed(0)
    for _ in range(3):
        real, fake = torch.randn(2, 3 * ranks, 2, 6, 6)
        mine = slice(3 * rank, 3 * rank + 3)
        for run, part, optimizer in (
            (forward, mine, optimizers[0]),
            (whole, slice(None), optimizers[1]),
        ):
            optimizer.zero_grad()
            loss = run(real[part]).mean() - run(fake[part]).square().mean()
            loss.backward()
        for ours, theirs in zip(replica.parameters(), whole.parameters(), strict=True):
            assert_close(ours.grad, theirs.grad, **ROUNDING)
        for optimizer in optimizers:
            optimizer.step()
    for key, value in replica.state_dict().items():
        assert_close(value, whole.state_dict()[key], **ROUNDING)
        same_on_every_rank(value)
    for key, sigma in sigmas(replica).items():
        assert_close(sigma, sigmas(whole)[key], **ROUNDING)


@pytest.mark.parametrize("foreach", [False, True], ids=["one-by-one", "foreach"])
@pytest.mark.parametrize("broadcast_buffers", [True, False], ids=["broadcast", "no-broadcast"])
def test_ddp(two_ranks, broadcast_buffers, foreach):
    two_ranks.run(trains_as_the_whole, broadcast_buffers, foreach, False)


@pytest.mark.parametrize("foreach", [False, True], ids=["one-by-one", "foreach"])
def test_compiled_ddp(two_ranks, foreach):
    two_ranks.run(trains_as_the_whole, True, foreach, True)


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("foreach", [False, True], ids=["one-by-one", "foreach"])
def test_data_parallel(foreach):
    devices = list(range(torch.cuda.device_count()))
    single = apply_spectral_norm(model().cuda(), foreach=foreach)
    replicated = copy.deepcopy(single)
    parallel = nn.DataParallel(replicated, devices)
    for _ in range(3):
        x = torch.randn(8, 2, 6, 6, device="cuda")
        for run in (single, parallel):
            run(x).square().mean().backward()
    for ours, theirs in zip(replicated.parameters(), single.parameters(), strict=True):
        assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    for key, value in replicated.state_dict().items():
        assert_close(value, single.state_dict()[key], **ROUNDING)
