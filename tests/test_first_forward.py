"""Initialization after wrapping: what is written before the first forward becomes the weight.

As with torch's hook, whose ``weight`` is the memory of ``weight_orig`` until then.
"""

import copy
import gc
import math
import warnings
import weakref

import pytest
import torch
from torch import nn

from snorm_triton import apply_spectral_norm, refresh_spectral_norm, sigmas, spectral_norm
from snorm_triton.modules.access import ConstrainedList
from snorm_triton.modules.fresh import FreshList

hook = torch.nn.utils.spectral_norm


def spade(module):  # init_weights of SPADE's base network, over model.apply
    if hasattr(module, "weight") and type(module).__name__.find("Conv") != -1:
        nn.init.xavier_normal_(module.weight.data, gain=0.02)
        nn.init.constant_(module.bias.data, 0.0)


def studiogan(module):  # init_weights of StudioGAN, over model.modules()
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.orthogonal_(module.weight)
        module.bias.data.fill_(0.0)


def edge_connect(module):  # BaseNetwork.init_weights
    if hasattr(module, "weight") and type(module).__name__.find("Linear") != -1:
        nn.init.normal_(module.weight.data, 0.0, 0.02)
    elif hasattr(module, "weight") and type(module).__name__.find("Conv") != -1:
        nn.init.normal_(module.weight.data, 0.0, 0.02)
        nn.init.constant_(module.bias.data, 0.0)


def dcgan_notebook(module):  # weights_init of the DCGAN tutorial and what follows it
    if type(module).__name__.find("Conv") != -1:
        module.weight.data.normal_(0.0, 0.02)


def no_grad_copy(module):
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        with torch.no_grad():
            module.weight.copy_(torch.randn(module.weight.shape) * 0.05)


def in_two_steps(module):  # a draw, then a part of it
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        weight = module.weight.data
        weight.normal_(0, 0.1)
        weight[0].zero_()


IDIOMS = [spade, studiogan, edge_connect, dcgan_notebook, no_grad_copy, in_two_steps]


def layers(normalize):
    torch.manual_seed(3)
    return nn.Sequential(
        normalize(nn.Conv2d(3, 8, 3, padding=1)),
        nn.LeakyReLU(),
        normalize(nn.ConvTranspose2d(8, 6, 4, 2, 1)),
        nn.Flatten(),
        normalize(nn.Linear(6 * 64, 5)),
    )


@pytest.mark.parametrize("foreach", [False, True], ids=["single", "foreach"])
@pytest.mark.parametrize("initialize", IDIOMS, ids=lambda idiom: idiom.__name__)
def test_the_idioms_of_clients_give_the_weights_that_the_hook_gives(
    initialize, foreach, report_line
):
    theirs = layers(hook).apply(initialize)
    plain = layers(lambda module: spectral_norm(module))
    ours = plain.apply(initialize)
    if foreach:
        apply_spectral_norm(ours, foreach=True)
    x = torch.randn(2, 3, 4, 4)
    theirs(x)
    ours(x)
    for there, here in zip(theirs, ours, strict=True):
        if not hasattr(there, "weight_orig"):
            continue
        assert torch.equal(here.parametrizations.weight.original, there.weight_orig)
        std = here.weight_orig.std().item(), there.weight_orig.std().item()
        kind = f"{initialize.__name__:16}{'foreach' if foreach else 'single':9}"
        report_line(
            "std of raw weights after initialization: ours, torch's hook",
            f"{kind}{type(here).__name__.removeprefix('Parametrized'):18}{std[0]:.6f} {std[1]:.6f}",
        )
    # u and v are those of the new weights, not of the ones that they were drawn for.
    for name, sigma in sigmas(ours.eval()).items():
        layer = ours[int(name.partition(".")[0])]
        matrix = layer.weight_orig.movedim(layer.parametrizations.weight[0].dim, 0).flatten(1)
        assert abs(sigma / torch.linalg.matrix_norm(matrix, 2) - 1) < 0.2


def test_the_draw_is_there_before_any_forward():
    layer = spectral_norm(nn.Linear(6, 4))
    nn.init.constant_(layer.weight.data, 0.5)
    assert (layer.state_dict()["parametrizations.weight.original"] == 0.5).all()
    nn.init.constant_(layer.weight, 0.25)
    assert (layer.parametrizations.weight.original == 0.25).all()
    layer.weight.data.fill_(2)
    assert (copy.deepcopy(layer).weight_orig == 2).all()
    layer.weight.data.fill_(3)
    assert (layer.double().weight_orig == 3).all()
    assert abs(torch.linalg.matrix_norm(layer.weight, 2) - 1) < 1e-6


def test_a_part_that_is_written_leaves_the_rest_as_it_was():
    layer = spectral_norm(nn.Linear(6, 4))
    before = layer.weight_orig.detach().clone()
    layer.weight.data[1] = 0.125
    after = layer.weight_orig
    assert (after[1] == 0.125).all()
    assert torch.equal(after[[0, 2, 3]], before[[0, 2, 3]])


def test_nothing_is_adopted_where_nothing_was_written():
    layer = spectral_norm(nn.Linear(6, 4))
    before = layer.weight_orig.detach().clone()
    for _ in range(3):
        assert math.isfinite(layer.weight.sum().item())
    assert torch.equal(layer.weight_orig, before)


def test_reading_the_weight_draws_no_random_numbers():
    layer = spectral_norm(nn.Linear(6, 4))
    torch.manual_seed(7)
    expected = torch.randn(3)
    torch.manual_seed(7)
    layer.weight.data.fill_(1)
    layer(torch.ones(1, 6))
    assert torch.equal(torch.randn(3), expected)


def test_after_the_first_forward_nothing_of_it_remains():
    layer = spectral_norm(nn.Linear(6, 4))
    handed_out = layer.weight
    memory = weakref.ref(handed_out)
    assert type(layer.parametrizations.weight) is FreshList
    layer(torch.ones(2, 6))
    assert type(layer.parametrizations.weight) is ConstrainedList
    assert "_shown" not in vars(layer.parametrizations.weight)
    del handed_out
    gc.collect()
    assert memory() is None


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_after_the_first_forward_a_change_is_lost_and_warned_of(mode):
    model = nn.Sequential(nn.Identity(), spectral_norm(nn.Linear(6, 4)))
    getattr(model, mode)()
    model(torch.ones(2, 6))
    before = model[1].weight_orig.detach().clone()
    nn.init.zeros_(model[1].weight)
    with pytest.warns(UserWarning, match=r"'1\.weight' was changed in place") as caught:
        model(torch.ones(2, 6))
    assert caught[0].filename == __file__
    assert torch.equal(model[1].weight_orig, before)


def test_each_layer_is_warned_of():
    model = nn.Sequential(spectral_norm(nn.Linear(4, 4)), spectral_norm(nn.Linear(4, 4)))
    model(torch.ones(2, 4))
    for layer in model:
        nn.init.zeros_(layer.weight)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        model(torch.ones(2, 4))
    assert [str(each.message).partition(" ")[0] for each in caught] == ["'0.weight'", "'1.weight'"]


def test_a_step_of_an_optimizer_ends_it_too():
    layer = spectral_norm(nn.Linear(6, 4))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    nn.functional.linear(torch.ones(1, 6), layer.weight).sum().backward()  # not by its forward
    optimizer.step()
    assert layer.weight.isfinite().all()
    assert type(layer.parametrizations.weight) is ConstrainedList


def test_before_a_compiled_forward():
    layer = spectral_norm(nn.Linear(6, 4))
    nn.init.normal_(layer.weight.data, 0, 3)
    expected = layer.weight.detach()
    nn.init.normal_(layer.weight.data, 0, 3)
    drawn = layer.weight.detach() * 0 + layer.weight_orig.detach()
    assert not torch.equal(drawn, expected)
    layer.weight.data.fill_(0.5)
    torch.compile(layer, backend="aot_eager", fullgraph=True)(torch.ones(2, 6))
    assert (layer.weight_orig == 0.5).all()


def test_zeros_and_nan_are_taken_as_they_are():
    layer = spectral_norm(nn.Linear(6, 4))
    nn.init.zeros_(layer.weight.data)
    assert layer.weight.abs().sum() == 0
    layer.weight.data.fill_(float("nan"))
    assert layer.weight.isnan().all()
    layer.weight.data.fill_(1)
    assert abs(torch.linalg.matrix_norm(refresh_spectral_norm(layer).weight, 2) - 1) < 1e-5
