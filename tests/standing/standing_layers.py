"""A normalized layer that is trained, for the tests of this folder."""

import torch
from torch import nn

from snorm_triton import spectral_norm


def layer_of(**options):
    torch.manual_seed(0)
    return spectral_norm(nn.Conv1d(4, 6, 3), **options)


def x_of(layer):
    original = layer.parametrizations.weight.original
    return torch.linspace(-1, 1, 40).view(2, 4, 5).to(original.dtype)


def train(layer):
    layer(x_of(layer)).square().sum().backward()


def original_of(layer):
    return layer.parametrizations.weight.original


def step(layer):
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
