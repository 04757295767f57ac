"""Two ranks train as one process does with the whole batch."""

import pytest
import torch
from torch import nn

from snorm_triton.gan import Trainer, TrainingConfig, fit_to_data
from snorm_triton.gan.batch_norm import synchronize_batch_norm
from snorm_triton.gan.ranks import Ranks
from tiny_runs import TINY, tiny_images

MODES = [
    {},
    {"model": "sn-dcgan", "loss": "bce", "betas": (0.5, 0.999)},
    {"loss": "wgan-gp", "normalization": "weight-norm", "discriminator_steps": 2},
]


def trained(options, ranks):
    """In float64: there Adam's epsilon drowns the rounding of gradients that should be zero."""
    torch.set_default_dtype(torch.float64)
    try:
        config, data = fit_to_data(TrainingConfig(**TINY | options), tiny_images())
        trainer = Trainer(config, data, ranks)
        losses = [[float(ranks.mean(loss)) for loss in trainer.advance()] for _ in range(4)]
        state = trainer.state_dict()
        networks = {key: state[key]["network"] for key in ("generator", "discriminator")}
        return losses, networks | {"average": state["averaged_generator"]}
    finally:
        torch.set_default_dtype(torch.float32)


def trained_by_each(options):
    return trained(options, Ranks(torch.distributed.get_rank(), 2))


@pytest.mark.parametrize("options", MODES, ids=str)
def test_two_ranks_train_as_one_does(two_ranks, options):
    one, (first, second) = trained(options, Ranks()), two_ranks.run(trained_by_each, options)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, one, rtol=1e-8, atol=1e-8)


def batch_norm_of_each(values, weights):
    network = nn.Sequential(nn.BatchNorm2d(3)).double()
    synchronize_batch_norm(network)
    ranks = Ranks(torch.distributed.get_rank(), 2)
    share = ranks.share(values).requires_grad_()
    output = network(share)
    (output * ranks.share(weights)).sum().backward()
    return output.detach(), share.grad, network.state_dict()


def test_batch_norm_is_that_of_the_whole_batch(two_ranks):
    values, weights = torch.randn(2, 4, 3, 2, 2, dtype=torch.float64)
    first, second = two_ranks.run(batch_norm_of_each, values, weights)
    network = nn.Sequential(nn.BatchNorm2d(3)).double()
    whole = values.clone().requires_grad_()
    output = network(whole)
    (output * weights).sum().backward()
    torch.testing.assert_close(torch.cat([first[0], second[0]]), output.detach())
    torch.testing.assert_close(torch.cat([first[1], second[1]]), whole.grad)
    assert first[2].keys() == network.state_dict().keys()
    for state in (first[2], second[2]):
        torch.testing.assert_close(state, dict(network.state_dict()))


def test_a_batch_that_does_not_divide_is_refused():
    config, data = fit_to_data(TrainingConfig(**TINY | {"batch_size": 5}), tiny_images())
    with pytest.raises(ValueError, match="batch_size must be a multiple of the 2 ranks, got 5"):
        Trainer(config, data, Ranks(0, 2))


def test_ranks_share_a_batch():
    batch = torch.arange(6)
    assert [Ranks(rank, 3).share(batch).tolist() for rank in range(3)] == [[0, 1], [2, 3], [4, 5]]
