"""What samples are judged by: a classifier that knows digits, and a distance of its features."""

import pytest
import torch

from snorm_triton.gan.classifier import Classifier
from snorm_triton.gan.datasets import as_floats
from snorm_triton.gan.datasets.digits import load_digits
from snorm_triton.gan.frechet import frechet_distance


@pytest.fixture(scope="module")
def digits():
    return load_digits()


@pytest.fixture(scope="module")
def classifier(digits):
    return Classifier(digits)


def test_it_reads_digits_that_it_has_not_seen_and_no_wrong_ones(digits, classifier):
    assert classifier.accuracy > 0.9
    images = as_floats(digits.images[:500])
    assert classifier.agreement(images, digits.labels[:500]) > 0.9
    assert classifier.agreement(images, (digits.labels[:500] + 1) % 10) < 0.1


def test_it_tells_digits_from_noise_and_from_one_digit(digits, classifier):
    half, other = digits.images.chunk(2)
    near = classifier.distance_between(half, other)
    noise = classifier.distance(torch.rand(500, 1, 8, 8) * 2 - 1)
    zeros = classifier.distance(as_floats(digits.images[digits.labels == 0]))
    assert 0 < 5 * near < min(noise, zeros)


def test_training_it_leaves_random_numbers_alone(digits):
    before = torch.get_rng_state()
    few = type(digits)(digits.images[:100], digits.labels[:100], 10)
    assert Classifier(few).distance(torch.zeros(3, 1, 8, 8)) == Classifier(few).distance(
        torch.zeros(3, 1, 8, 8)
    )
    assert torch.equal(torch.get_rng_state(), before)


def test_distance_of_normal_distributions_by_hand():
    features = torch.randn(50, 4, dtype=torch.float64)
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-9)
    moved = features + torch.tensor([3.0, 0, 4, 0])
    assert frechet_distance(features, moved) == pytest.approx(25)
    # |S^(1/2) - 2 S^(1/2)|^2 = tr S where all is twice as wide, about the same mean
    centered = features - features.mean(0)
    assert frechet_distance(centered, 2 * centered) == pytest.approx(centered.var(0).sum().item())


def test_distance_where_covariances_do_not_commute():
    # of diag(1, 4) and the same turned by 90 degrees: tr = 5 + 5 - 2 * (2 + 2)
    corners = torch.tensor([[1.0, 2], [1, -2], [-1, 2], [-1, -2]]).double() * (3 / 4) ** 0.5
    assert frechet_distance(corners, corners.flip(1)) == pytest.approx(2)
