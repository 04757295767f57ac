"""torch's own spectral norms, computed by us, behave to their modules as ever."""

import copy
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import remove_spectral_norm as remove_hook
from torch.nn.utils import spectral_norm as hook
from torch.nn.utils.parametrizations import spectral_norm as parametrization
from torch.nn.utils.parametrize import remove_parametrizations
from torch.utils.checkpoint import checkpoint

from snorm_triton import patch_torch, sigmas
from snorm_triton.torch_internals.parametrize import LegacySpectralNorm, TorchSpectralNorm

STYLES = {"hook": hook, "parametrization": parametrization}


@pytest.fixture(autouse=True)
def nothing_is_left():
    before = LegacySpectralNorm.compute_weight, TorchSpectralNorm.forward
    yield
    assert (LegacySpectralNorm.compute_weight, TorchSpectralNorm.forward) == before


def model(style):
    torch.manual_seed(0)
    normalize = STYLES[style]
    return nn.Sequential(
        normalize(nn.Conv2d(3, 6, 3, padding=1)),
        nn.LeakyReLU(),
        normalize(nn.ConvTranspose2d(6, 4, 4, 2, 1)),
        nn.Flatten(),
        normalize(nn.Linear(4 * 64, 2)),
    )


def trained(layers):
    optimizer = torch.optim.SGD(layers.parameters(), lr=0.05)
    torch.manual_seed(1)
    for _ in range(3):
        optimizer.zero_grad()
        layers(torch.randn(2, 3, 4, 4)).square().mean().backward()
        optimizer.step()
    return layers


def initialized(layers):
    for layer in layers:
        if hasattr(layer, "weight"):
            nn.init.normal_(layer.weight.data, 0, 0.02)
    return layers


def reloaded(layers):
    state = trained(copy.deepcopy(layers)).state_dict()
    layers.load_state_dict(state)
    return layers


def halved(layers):
    return layers.double().float()


def removed(layers):
    for layer in layers:
        if hasattr(layer, "weight_orig"):
            remove_hook(layer)
        elif hasattr(layer, "parametrizations"):
            layer.eval()
            remove_parametrizations(layer, "weight")
    return layers


# What clients do: each from a fresh model, then as it is and in evaluation.
PATTERNS = {
    "nothing": lambda layers: layers,
    "train": trained,
    "init after wrapping": initialized,
    "init, then train": lambda layers: trained(initialized(layers)),
    "deepcopy": lambda layers: copy.deepcopy(layers),
    "deepcopy, then train": lambda layers: trained(copy.deepcopy(layers)),
    "load": reloaded,
    "to double and back": halved,
    "remove": removed,
    "train, then remove": lambda layers: removed(trained(layers)),
    "apply": lambda layers: layers.apply(lambda module: module.eval()).train(),
    "share_memory": lambda layers: layers.share_memory(),
    "eval, then train": lambda layers: trained(layers.eval().train()),
    "state dict": lambda layers: layers,
}


def outcome(style, pattern):
    layers = PATTERNS[pattern](model(style))
    torch.manual_seed(2)
    x = torch.randn(2, 3, 4, 4)
    for _ in range(40):
        layers.train()(x)
    return layers, layers.eval()(x).detach()


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("style", STYLES)
def test_the_patterns_of_clients_come_out_the_same(style, pattern):
    expected, there = outcome(style, pattern)
    with patch_torch():
        patched, here = outcome(style, pattern)
    assert list(patched.state_dict()) == list(expected.state_dict())
    assert [type(m).__name__ for m in patched.modules()] == [
        type(m).__name__ for m in expected.modules()
    ]
    torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-5)
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(patched.state_dict()[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("style", STYLES)
def test_it_is_our_arithmetic(style):
    layer = STYLES[style](nn.Linear(6, 4))
    with patch_torch():
        x = torch.randn(3, 6)
        layer(x).sum().backward()
        assert list(sigmas(layer)) == ["weight"]
        original = layer.weight_orig if style == "hook" else layer.parametrizations.weight.original
        nn.init.zeros_(original)
        output = F.linear(x, _weight(layer, x))
        assert (output == 0).all()
        assert sigmas(layer)["weight"] == 0
        nn.init.eye_(original)
        assert abs(torch.linalg.matrix_norm(_weight(layer, x), 2) - 1) < 1e-5


def _weight(layer, x):
    layer(x)
    return layer.weight


@pytest.mark.parametrize("style", STYLES)
def test_a_weight_that_is_not_finite_heals(style):
    layer = STYLES[style](nn.Linear(6, 4))
    original = layer.weight_orig if style == "hook" else layer.parametrizations.weight.original
    good = original.detach().clone()
    x = torch.randn(3, 6)
    with patch_torch():
        with torch.no_grad():
            original.fill_(float("nan"))
        layer(x)
        with torch.no_grad():
            original.copy_(good)
        for _ in range(30):
            layer(x)
        assert abs(torch.linalg.matrix_norm(_weight(layer, x), 2) - 1) < 1e-3


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_recomputed_forwards_take_what_their_forwards_took(style, use_reentrant):
    x = torch.randn(3, 6)
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        layer = STYLES[style](nn.Linear(6, 4))
        leaf = x.clone().requires_grad_()
        with patch_torch():
            run = layer
            if recompute:
                run = lambda y, layer=layer: checkpoint(layer, y, use_reentrant=use_reentrant)  # noqa: E731
            loss = run(leaf).square().sum() + run(2 * leaf).square().sum()
            loss.backward()
        gradients.append(leaf.grad)
    assert (gradients[0] - gradients[1]).norm() < 1e-6 * gradients[0].norm()


def test_a_class_that_computes_by_itself_is_left_alone():
    class Doubled(LegacySpectralNorm):
        def compute_weight(self, module, do_power_iteration):
            return 2 * getattr(module, self.name + "_orig")

    class Reshaped(LegacySpectralNorm):
        def reshape_weight_to_matrix(self, weight):
            return super().reshape_weight_to_matrix(weight)

    with patch_torch():
        for kind, is_ours in ((Doubled, False), (Reshaped, False), (LegacySpectralNorm, True)):
            layer = hook(nn.Linear(6, 4))
            next(iter(layer._forward_pre_hooks.values())).__class__ = kind
            layer(torch.randn(2, 6))
            assert bool(sigmas(layer)) is is_ours


def test_one_dimension_is_left_to_torch():
    layer = parametrization(nn.Linear(6, 4), "bias")
    with patch_torch():
        assert abs(layer.bias.norm() - 1) < 1e-5
    assert not sigmas(layer)


def test_twice_and_undone_in_any_order():
    original = LegacySpectralNorm.compute_weight
    first, second = patch_torch(), patch_torch()
    first.undo()
    assert LegacySpectralNorm.compute_weight is not original
    first.undo()  # once more
    assert LegacySpectralNorm.compute_weight is not original
    second.undo()
    assert LegacySpectralNorm.compute_weight is original


def test_from_many_threads():
    def patch():
        for _ in range(50):
            with patch_torch():
                layer(torch.randn(2, 6))

    layer = hook(nn.Linear(6, 4))
    threads = [threading.Thread(target=patch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert layer.weight.isfinite().all()


def test_a_patch_over_ours_stays_and_comes_through_to_torchs():
    original = LegacySpectralNorm.compute_weight
    calls = []
    patch = patch_torch()
    ours = LegacySpectralNorm.compute_weight

    def theirs(self, module, do_power_iteration):
        calls.append(module)
        return ours(self, module, do_power_iteration)

    LegacySpectralNorm.compute_weight = theirs
    patch.undo()
    try:
        layer = hook(nn.Linear(6, 4))
        layer(torch.randn(2, 6))
        assert calls
        assert not sigmas(layer)
    finally:
        LegacySpectralNorm.compute_weight = original


def test_a_hook_that_was_computed_by_us_can_be_pickled():
    layer = hook(nn.Linear(6, 4))
    with patch_torch():
        layer(torch.randn(2, 6))
    layer.weight = layer.weight.detach()  # as torch's own needs, too
    again = pickle.loads(pickle.dumps(layer))
    assert torch.equal(again.weight_orig, layer.weight_orig)


@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore:.*torch.nn.utils.weight_norm")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "norm",
    [
        nn.utils.spectral_norm,
        nn.utils.parametrizations.spectral_norm,
        nn.utils.weight_norm,
        nn.utils.parametrizations.weight_norm,
    ],
    ids=["hook", "parametrization", "weight-norm-hook", "weight-norm"],
)
def test_compiled_training_is_torchs(norm, training):
    def gradients():
        torch.compiler.reset()
        torch.manual_seed(0)
        model = nn.Sequential(norm(nn.Linear(6, 5)), nn.Tanh(), norm(nn.Linear(5, 4)))
        compiled = torch.compile(model.train(training), backend="aot_eager")
        for _ in range(2):
            model.zero_grad()
            compiled(torch.ones(3, 6)).square().sum().backward()
        grads = [parameter.grad for parameter in model.parameters()]
        return [*grads, *model.state_dict().values()]

    expected = gradients()
    with patch_torch():
        patched = gradients()
    torch.testing.assert_close(patched, expected)
