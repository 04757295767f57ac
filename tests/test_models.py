"""The models: sizes as published, every layer normalized."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from snorm_triton import spectral_norm
from snorm_triton.models import (
    SNDCGANDiscriminator,
    SNDCGANGenerator,
    SNResNetDiscriminator,
    SNResNetGenerator,
)

LAYERS = nn.Conv2d | nn.Linear | nn.Embedding
NORMALIZATIONS = {"ours": spectral_norm, "torch": parametrizations.spectral_norm, "none": None}


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def normalized_layers(model: nn.Module) -> dict[str, nn.Module]:
    return {
        name: layer
        for name, layer in model.named_modules()
        if parametrize.is_parametrized(layer, "weight")
    }


def plain_layers(model: nn.Module) -> list[str]:
    """Names of the layers with a weight matrix that are not normalized."""
    layers = {name for name, layer in model.named_modules() if isinstance(layer, LAYERS)}
    return sorted(layers - normalized_layers(model).keys())


@pytest.mark.parametrize(
    ("build", "parameters", "layers"),
    [
        (SNResNetDiscriminator.cifar10, 1_053_824, 11),
        (SNResNetDiscriminator.stl10, 10_141_441, 16),
        (SNResNetDiscriminator.imagenet, 29_017_857, 18),
        (SNDCGANDiscriminator, 9_105, 3),
    ],
    ids=["cifar10", "stl10", "imagenet", "dcgan"],
)
def test_discriminator_sizes(build: Callable[[], nn.Module], parameters: int, layers: int):
    model = build()
    assert num_parameters(model) == parameters
    assert len(normalized_layers(model)) == layers
    assert plain_layers(model) == []


@pytest.mark.parametrize(
    ("build", "parameters"),
    [
        (SNResNetGenerator.cifar10, 4_276_739),
        (SNResNetGenerator.stl10, 4_878_083),
        (SNResNetGenerator.imagenet, 32_150_787),
        (SNDCGANGenerator, 747_841),
    ],
    ids=["cifar10", "stl10", "imagenet", "dcgan"],
)
def test_generator_sizes_and_no_normalization(build: Callable[[], nn.Module], parameters: int):
    model = build()
    assert num_parameters(model) == parameters
    assert not normalized_layers(model)


def test_cifar10_head_has_no_bias_and_the_others_have_one():
    assert SNResNetDiscriminator.cifar10().linear.bias is None
    assert SNResNetDiscriminator.imagenet(normalization=None).linear.bias is not None
    assert SNResNetDiscriminator.stl10(normalization=None).linear.bias is not None


@pytest.mark.parametrize(
    ("name", "size", "resolution"), [("cifar10", 32, 8), ("stl10", 48, 3), ("imagenet", 128, 4)]
)
def test_resnet_pair_fits_and_sends_gradients_to_every_parameter(name, size, resolution):
    generator = getattr(SNResNetGenerator, name)()
    discriminator = getattr(SNResNetDiscriminator, name)()
    images = generator(torch.randn(2, generator.z_dim))
    assert images.shape == (2, 3, size, size)
    assert images.abs().max() <= 1
    assert discriminator.blocks(images).shape[2:] == (resolution, resolution)
    logits = discriminator(images)
    assert logits.shape == (2, 1)
    logits.sum().backward()
    for model in (generator, discriminator):
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_dcgan_pair_fits_and_sends_gradients_to_every_parameter():
    generator, discriminator = SNDCGANGenerator(), SNDCGANDiscriminator()
    images = generator(torch.randn(3, 64))
    assert images.shape == (3, 1, 28, 28)
    logits = discriminator(images)
    assert logits.shape == (3, 1)
    logits.sum().backward()
    for model in (generator, discriminator):
        assert all(p.grad is not None for p in model.parameters())


def test_dcgan_weights_are_drawn_from_normal_0_02():
    torch.manual_seed(0)
    for model in (SNDCGANGenerator(), SNDCGANDiscriminator(channels=64, normalization=None)):
        for layer in model:
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and layer.weight.numel() > 10_000:
                assert layer.weight.mean().item() == pytest.approx(0, abs=1e-3)
                assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_resnet_weights_are_glorot_uniform_with_gain_sqrt_2_for_3x3():
    torch.manual_seed(0)
    model = SNResNetDiscriminator.cifar10(num_classes=10)
    block = model.blocks[1]
    bound_3x3 = (2 * 6 / (9 * 128 + 9 * 128)) ** 0.5
    bound_1x1 = (6 / (128 + 128)) ** 0.5
    bound_embedding = (6 / (10 + 128)) ** 0.5
    for layer, bound in (
        (block.conv1, bound_3x3),
        (block.shortcut, bound_1x1),
        (model.embedding, bound_embedding),
    ):
        raw = layer.parametrizations.weight.original
        assert raw.abs().max().item() == pytest.approx(bound, rel=0.01)
        assert raw.abs().max().item() <= bound
    assert not block.conv1.bias.any()


@pytest.mark.parametrize(
    "build", [SNResNetDiscriminator.cifar10, SNDCGANDiscriminator], ids=["resnet", "dcgan"]
)
def test_any_normalization_starts_from_the_same_weights(build):
    raw = {}
    for name, normalization in NORMALIZATIONS.items():
        torch.manual_seed(0)
        state = build(normalization=normalization).state_dict()
        raw[name] = {
            key.replace("parametrizations.weight.original", "weight"): value
            for key, value in state.items()
            if not key.endswith(("._u", "._v"))
        }
    for name in ("ours", "torch"):
        assert raw[name].keys() == raw["none"].keys()
        assert all(torch.equal(raw[name][key], raw["none"][key]) for key in raw["none"])


def test_number_of_parameters_does_not_depend_on_the_normalization():
    for build in (SNResNetDiscriminator.cifar10, SNDCGANDiscriminator):
        counts = {num_parameters(build(normalization=n)) for n in NORMALIZATIONS.values()}
        assert len(counts) == 1


def test_none_normalizes_nothing():
    assert not normalized_layers(SNResNetDiscriminator.cifar10(normalization=None, num_classes=3))


def test_a_normalization_may_return_another_module():
    model = SNResNetDiscriminator(2, 4, normalization=nn.Sequential)
    assert isinstance(model.linear, nn.Sequential)
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 1)


@pytest.mark.parametrize("normalization", ["ours", "torch"])
@pytest.mark.parametrize(
    "build", [SNResNetDiscriminator.cifar10, SNDCGANDiscriminator], ids=["resnet", "dcgan"]
)
def test_top_singular_value_of_each_layer_is_near_one(build, normalization):
    torch.manual_seed(0)
    model = build(normalization=NORMALIZATIONS[normalization])
    for _ in range(5):
        model(torch.randn(1, *((1, 28, 28) if build is SNDCGANDiscriminator else (3, 32, 32))))
    model.eval()
    for name, layer in normalized_layers(model).items():
        sigma = torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2).item()
        assert sigma == pytest.approx(1, abs=0.05), name


def test_free_configuration():
    model = SNResNetDiscriminator(3, (4, 8, 8), in_channels=2, num_downsamples=1, num_classes=5)
    assert len(normalized_layers(model)) == 3 + 3 + 2 + 2
    assert plain_layers(model) == []
    assert model.blocks(torch.randn(2, 2, 8, 8)).shape == (2, 8, 4, 4)
    generator = SNResNetGenerator(2, (8, 4, 4), out_channels=2, z_dim=3, bottom_width=2)
    assert generator(torch.randn(2, 3)).shape == (2, 2, 8, 8)


def test_projection_adds_the_inner_product_of_embedding_and_features():
    model = SNResNetDiscriminator(2, 4, num_classes=5, head_bias=False).eval()
    assert model.embedding is not None
    x, y = torch.randn(3, 3, 8, 8), torch.tensor([0, 4, 4])
    features = model.blocks(x).relu().sum(dim=(2, 3))
    inner = (model.embedding.weight[y] * features).sum(dim=1, keepdim=True)
    expected = features @ model.linear.weight.T + inner
    torch.testing.assert_close(model(x, y), expected)


def test_conditional_generator_depends_on_the_class():
    model = SNResNetGenerator(1, 4, num_classes=2, z_dim=3).eval()
    block = model.blocks[0]
    with torch.no_grad():
        block.norm2.shift.weight[1] = 1.0
    z = torch.randn(1, 3).expand(2, 3)
    first, second = model(z, torch.tensor([0, 1]))
    assert not torch.allclose(first, second)


def test_conditional_batch_norm_starts_as_plain_batch_norm():
    torch.manual_seed(0)
    plain = SNResNetGenerator(1, 4, z_dim=3)
    torch.manual_seed(0)
    conditional = SNResNetGenerator(1, 4, z_dim=3, num_classes=2)
    conditional.load_state_dict(plain.state_dict(), strict=False)
    z = torch.randn(5, 3)
    torch.testing.assert_close(conditional(z, torch.tensor([0, 1, 0, 1, 1])), plain(z))


def test_training_follows_torch():
    losses = {}
    for name in ("ours", "torch"):
        torch.manual_seed(0)
        model = SNResNetDiscriminator(2, 8, num_classes=3, normalization=NORMALIZATIONS[name])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        torch.manual_seed(1)
        losses[name] = []
        for _ in range(3):
            loss = model(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[name].append(loss.item())
    assert losses["ours"] == pytest.approx(losses["torch"], rel=1e-5)
