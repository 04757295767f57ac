"""What the tests of orthogonal weights share."""

import torch
from torch import nn

MAPS = ["householder", "matrix_exp", "cayley", "newton_schulz"]


def assert_orthonormal(weight, dim=None, atol=1e-5):
    rows = weight.detach() if dim is None else weight.detach().movedim(dim, 0).flatten(1)
    rows = rows.float() if rows.shape[-2] <= rows.shape[-1] else rows.float().mT
    identity = torch.eye(rows.shape[-2]).expand(*rows.shape[:-1], -1)
    torch.testing.assert_close(rows @ rows.mT, identity, rtol=0, atol=atol)


def begin_training(model):
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    return model


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 9))


def steps(model, x):
    """Outputs and gradients of a step of training."""
    output = model(x)
    return [output, *torch.autograd.grad(output.square().mean(), list(model.parameters()))]


def moved(model):
    """As training leaves it."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            torch.manual_seed(len(name))
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return begin_training(model)
