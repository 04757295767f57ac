"""Models normalized as a whole in `torch.cuda.make_graphed_callables`."""

import copy

import pytest
import torch
from torch import nn

from snorm_triton import apply_spectral_norm, apply_weight_norm

pytestmark = pytest.mark.gpu


def discriminator():
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.LeakyReLU(0.1),
        nn.Conv2d(32, 64, 4, stride=2, padding=1),
        nn.LeakyReLU(0.1),
        nn.Flatten(),
        nn.Linear(64 * 16, 1),
    )


def losses_of(model, images):
    """Of training steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for batch in images:
        optimizer.zero_grad()
        loss = model(batch).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach().clone())
    return losses


@pytest.mark.parametrize("normalize", [apply_spectral_norm, apply_weight_norm])
def test_they_train_as_the_model_does(normalize, cuda):
    images = torch.randn(6, 4, 3, 8, 8, device=cuda)
    # Of a module with hooks it makes none; of one that holds the normalized model it does.
    model = nn.Sequential(normalize(discriminator().to(cuda), foreach=True))
    losses_of(model, images)
    twin = copy.deepcopy(model)
    graphed = torch.cuda.make_graphed_callables(twin, (images[0].clone(),))
    model.load_state_dict(twin.state_dict())  # the warm-up and the capture have iterated
    torch.testing.assert_close(losses_of(graphed, images), losses_of(model, images))
