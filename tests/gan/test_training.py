"""The steps of a training: what moves, at which rate, on which images, and what samples come of."""

import math

import pytest
import torch
from torch import nn

from snorm_triton.gan import ImageSet, Trainer, TrainingConfig, fit_to_data
from snorm_triton.gan.losses import LOSSES
from snorm_triton.gan.networks import doublings
from snorm_triton.gan.normalizations import NORMALIZATIONS
from snorm_triton.gan.order import ShuffledOrder
from snorm_triton.gan.singular_values import top_singular_values
from tiny_runs import TINY, tiny_images


def trainer_of(data=None, **options):
    config = TrainingConfig(**TINY | options)
    return Trainer(*fit_to_data(config, tiny_images() if data is None else data))


def weights_of(trainer):
    """Without what a batch norm takes off again: biases before it have no gradient."""
    networks = (trainer.generator.network, trainer.discriminator.network)
    return [weight for network in networks for weight in network.parameters() if weight.ndim > 1]


MODES = [
    *({"loss": loss} for loss in LOSSES),
    *({"normalization": name} for name in NORMALIZATIONS),
    {"model": "sn-dcgan"},
    {"conditional": False},
    {"autocast": "bfloat16"},
    {"autocast": "float16"},
    {"autocast": "bfloat16", "loss": "wgan-gp"},
    {"discriminator_steps": 3},
    {"ema_decay": 0.0},
]


@pytest.mark.parametrize("options", MODES, ids=str)
def test_each_way_to_train_moves_both_networks(options):
    trainer = trainer_of(**options)
    before = [weight.clone() for weight in weights_of(trainer)]
    losses = [trainer.advance() for _ in range(3)][-1]
    assert all(math.isfinite(loss) and loss.dtype == torch.float32 for loss in losses)
    after = weights_of(trainer)
    assert not any(torch.equal(b, a) for b, a in zip(before, after, strict=True))


def test_the_rate_falls_linearly_and_would_be_zero_after_the_last_step():
    trainer = trainer_of(steps=4, learning_rate=0.8)
    rates = []
    for _ in range(4):
        trainer.advance()
        rates.append(trainer.generator.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.8, 0.6, 0.4, 0.2])


def test_a_constant_rate_stays():
    trainer = trainer_of(schedule="constant", learning_rate=0.8)
    for _ in range(2):
        trainer.advance()
    assert trainer.generator.optimizer.param_groups[0]["lr"] == 0.8


def test_without_decay_the_average_is_the_generator():
    trainer = trainer_of(ema_decay=0.0)
    for _ in range(2):
        trainer.advance()
    average = trainer.averaged_generator.module.state_dict()
    state = trainer.generator.network.state_dict()
    assert all(torch.equal(average[key], value) for key, value in state.items())


def test_the_average_moves_by_its_decay():
    trainer = trainer_of(ema_decay=0.75)
    trainer.advance()  # the first takes the generator as it is
    before = trainer.averaged_generator.module.linear.weight.clone()
    trainer.advance()
    expected = before.lerp(trainer.generator.network.linear.weight, 0.25)
    torch.testing.assert_close(trainer.averaged_generator.module.linear.weight, expected)


def test_an_order_takes_each_image_once_a_pass():
    order = ShuffledOrder(7, seed=0)
    taken = torch.cat([order.take(3) for _ in range(7)]).split(7)
    assert all(sorted(one.tolist()) == list(range(7)) for one in taken)
    assert len({tuple(one.tolist()) for one in taken}) == 3


def test_an_order_goes_on_where_it_was():
    order, again = ShuffledOrder(7, seed=0), ShuffledOrder(7, seed=1)
    order.take(10)
    again.load_state_dict(order.state_dict())
    assert torch.equal(again.take(20), order.take(20))


def test_the_notebook_has_the_dimensions_of_the_notebook():
    data = tiny_images(size=28)
    trainer = trainer_of(
        data, model="sn-dcgan", z_dim=64, generator_channels=64, discriminator_channels=16
    )
    counts = [
        sum(parameter.numel() for parameter in player.network.parameters())
        for player in (trainer.generator, trainer.discriminator)
    ]
    assert counts == [747841, 9105]


@pytest.mark.parametrize(
    ("size", "count"), [(8, 2), (28, 2), (32, 3), (48, 3), (64, 4), (96, 4), (128, 5)]
)
def test_resolutions_are_doubled_as_the_papers_are(size, count):
    assert doublings(size) == count


@pytest.mark.parametrize(("size", "channels"), [(16, 3), (12, 1), (32, 1)])
def test_images_of_other_shapes_train(size, channels):
    trainer = trainer_of(tiny_images(size, channels))
    trainer.advance()
    assert trainer.sample(torch.randn(2, 4), torch.tensor([0, 1])).shape == (
        2,
        channels,
        size,
        size,
    )


def test_images_of_another_size_are_resized_for_dcgan():
    config, data = fit_to_data(TrainingConfig(**TINY, model="sn-dcgan"), tiny_images(8))
    assert (config.image_size, data.shape) == (28, (1, 28, 28))
    assert config.conditional is False


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (tiny_images(10), {}, "image_size: sn-resnet makes images of a multiple of 4, got 10"),
        (tiny_images(8), {"model": "sn-dcgan", "image_size": 32}, "sn-dcgan makes images of 28"),
        (
            ImageSet(torch.zeros(2, 1, 8, 12, dtype=torch.uint8), torch.zeros(2).long(), 1),
            {},
            "image_size: the images are 8x12, and not square",
        ),
    ],
    ids=["no multiple", "dcgan", "not square"],
)
def test_sizes_that_do_not_fit_are_refused(data, options, message):
    with pytest.raises(ValueError, match=message):
        fit_to_data(TrainingConfig(**TINY | options), data)


def test_epochs_count_the_discriminators_images():
    options = TINY | {"steps": None, "epochs": 3.0, "discriminator_steps": 2}
    config, _ = fit_to_data(TrainingConfig(**options), tiny_images(count=16))
    assert config.steps == 3 * 16 // (4 * 2)


KNOWN = torch.diag(torch.tensor([1.0, -4.0, 2.0]))


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_top_singular_values_of_known_weights(name):
    layer = nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(KNOWN)
    normalize = NORMALIZATIONS[name]
    model = nn.Sequential(layer if normalize is None else normalize(layer), nn.ReLU())
    for _ in range(20):
        model(torch.ones(1, 3))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    measured = top_singular_values(model)["0"]
    spectral = name in ("ours", "torch", "hook")
    assert measured.raw == pytest.approx(4)
    assert measured.normalized == pytest.approx(1 if spectral else 4, rel=1e-4)
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_weight_that_diverged_has_no_singular_value():
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight[0, 0] = math.inf
    assert math.isnan(top_singular_values(nn.Sequential(layer))["0"].normalized)
