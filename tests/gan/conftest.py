"""What the tests of training share: threads as they were, and a classifier that takes no time."""

import pytest
import torch

from snorm_triton.gan import classifier


@pytest.fixture(autouse=True)
def threads():
    """Puts the number of threads back, which a run sets."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def hasty_classifier(monkeypatch):
    """One that is trained in one pass: for tests that do not ask how well it judges."""
    monkeypatch.setattr(classifier, "PASSES", 1)
