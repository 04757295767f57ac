"""The arguments of the models: what may be left out, and errors that name what is wrong."""

import re
from functools import partial

import pytest
import torch
from torch import nn

from snorm_triton import (
    SNDCGANDiscriminator,
    SNDCGANGenerator,
    SNResNetDiscriminator,
    SNResNetGenerator,
    SpectralNormParametrization,
    SpectralNormWrapper,
)


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (SNResNetDiscriminator, torch.zeros(2, 3, 8, 8)),
        (SNResNetGenerator, torch.zeros(2, 128)),
    ],
    ids=["discriminator", "generator"],
)
def test_labels_missing_or_unexpected(model, inputs):
    with pytest.raises(ValueError, match=r"y is missing: .* num_classes=7"):
        model(channels=4, num_classes=7)(inputs)
    with pytest.raises(ValueError, match="y was given, but the model is unconditional"):
        model(channels=4)(inputs, torch.tensor([0, 1]))


def test_labels_of_more_than_one_dimension():
    y = torch.zeros(2, 1, dtype=torch.int64)
    for model, inputs in (
        (SNResNetDiscriminator(2, 4, num_classes=3), torch.zeros(2, 3, 8, 8)),
        (SNResNetGenerator(1, 4, num_classes=3), torch.zeros(2, 128)),
    ):
        with pytest.raises(ValueError, match=r"y must have shape \(N,\), .* got \(2, 1\)"):
            model(inputs, y)


@pytest.mark.parametrize(("num_blocks", "resolution"), [(1, 4), (2, 2), (3, 2)])
def test_two_blocks_halve_the_resolution_or_the_only_one(num_blocks, resolution):
    model = SNResNetDiscriminator(num_blocks, 4)
    assert model.blocks(torch.zeros(2, 3, 8, 8)).shape == (2, 4, resolution, resolution)
    assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 1)


def test_sizes_may_be_integers_of_another_type():
    import numpy

    model = SNResNetDiscriminator(
        numpy.int64(2), numpy.array([4, 5]), num_classes=torch.tensor([2, 6]).max()
    )
    assert model(torch.zeros(1, 3, 8, 8), torch.tensor([5])).shape == (1, 1)


AT_LEAST_1 = "must be an integer of at least 1, got"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (partial(SNResNetDiscriminator, 0), f"num_blocks {AT_LEAST_1} 0"),
        (partial(SNResNetDiscriminator, "cifar10"), f"num_blocks {AT_LEAST_1} 'cifar10'"),
        (partial(SNResNetDiscriminator, 2.0), f"num_blocks {AT_LEAST_1} 2.0"),
        (partial(SNResNetDiscriminator, True), f"num_blocks {AT_LEAST_1} True"),
        (partial(SNResNetDiscriminator, in_channels=0), f"in_channels {AT_LEAST_1} 0"),
        (partial(SNResNetDiscriminator, in_channels=None), f"in_channels {AT_LEAST_1} None"),
        (partial(SNResNetDiscriminator, num_classes=0), f"num_classes {AT_LEAST_1} 0"),
        (partial(SNResNetDiscriminator, num_classes="10"), f"num_classes {AT_LEAST_1} '10'"),
        (partial(SNResNetDiscriminator, num_downsamples=0), f"num_downsamples {AT_LEAST_1} 0"),
        (partial(SNResNetDiscriminator, num_downsamples=1.5), f"num_downsamples {AT_LEAST_1} 1.5"),
        (
            partial(SNResNetDiscriminator, 2, num_downsamples=3),
            "num_downsamples must be at most num_blocks=2, got 3",
        ),
        (partial(SNResNetGenerator, bottom_width=0), f"bottom_width {AT_LEAST_1} 0"),
        (partial(SNResNetGenerator, z_dim="128"), f"z_dim {AT_LEAST_1} '128'"),
        (partial(SNResNetGenerator, num_classes=2.5), f"num_classes {AT_LEAST_1} 2.5"),
        (partial(SNDCGANDiscriminator, 0), f"in_channels {AT_LEAST_1} 0"),
        (partial(SNDCGANDiscriminator, channels=(16, 32)), rf"channels {AT_LEAST_1} \(16, 32\)"),
        (partial(SNDCGANGenerator, 0), f"z_dim {AT_LEAST_1} 0"),
        (partial(SNDCGANGenerator, channels="64"), f"channels {AT_LEAST_1} '64'"),
    ],
)
def test_bad_sizes_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("channels", [0, 4.0, "4", None, (), (4, 4, 4), (4, 0), (4, 4.5)])
def test_bad_widths_are_named(channels):
    message = "channels must be an integer of at least 1, or 2 of them, got "
    with pytest.raises(ValueError, match=message + re.escape(repr(channels))):
        SNResNetDiscriminator(2, channels)


def test_a_generator_has_a_width_more_than_blocks():
    message = r"channels must be an integer of at least 1, or 3 of them, got \(4, 4\)"
    with pytest.raises(ValueError, match=message):
        SNResNetGenerator(2, (4, 4))


DISCRIMINATORS = pytest.mark.parametrize(
    "build",
    [SNResNetDiscriminator, SNResNetDiscriminator.cifar10, SNDCGANDiscriminator],
    ids=["resnet", "cifar10", "dcgan"],
)


@DISCRIMINATORS
@pytest.mark.parametrize("normalization", ["torch", "none", True, False])
def test_a_normalization_that_is_no_function_is_told_what_to_type(build, normalization):
    state = torch.get_rng_state()
    with pytest.raises(TypeError, match=r"normalization must be a function .* or None .* got "):
        build(normalization=normalization)
    assert torch.equal(torch.get_rng_state(), state)


@DISCRIMINATORS
@pytest.mark.parametrize(
    ("normalization", "returned"),
    [(lambda layer: None, "None"), (partial(SpectralNormWrapper, name="weight"), "<snorm_triton")],
    ids=["in place", "wrapper"],
)
def test_a_normalization_returns_a_module(build, normalization, returned):
    with pytest.raises(TypeError, match=f"normalization must return the layer .* {returned}"):
        build(normalization=normalization)


def test_an_error_of_the_normalization_says_where_it_comes_from():
    for normalization in (SpectralNormParametrization, nn.Linear(2, 2)):
        with pytest.raises((AttributeError, TypeError)) as caught:
            SNDCGANDiscriminator(normalization=normalization)
        (note,) = caught.value.__notes__
        assert note == f"normalization={normalization!r} raised it for a Conv2d"
