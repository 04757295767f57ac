"""The penalty on spectral norms."""

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call
from torch.nn.utils import parametrizations
from torch.testing import assert_close

from snorm_triton import apply_spectral_norm, sigmas, spectral_norm, spectral_penalty
from snorm_triton.reference import largest_singular_value

LIMITLESS = {"bound": float("inf"), "n_power_iterations": 30}


@pytest.fixture
def model():
    layers = nn.Linear(6, 5), nn.ReLU(), nn.Unflatten(1, (5, 1)), nn.ConvTranspose1d(5, 4, 3)
    return apply_spectral_norm(nn.Sequential(*layers), **LIMITLESS)


def test_its_value_and_gradient_are_those_of_singular_values(model):
    model(torch.randn(2, 6))
    penalty = spectral_penalty(model)
    penalty.backward()
    expected = 0
    for layer in (model[0], model[3]):
        weight = layer.weight_orig.detach()
        dim = layer.parametrizations.weight[0].dim
        expected += largest_singular_value(weight, dim) ** 2 / 2
        matrix = weight.movedim(dim, 0).flatten(1)
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        gradient = s[0] * torch.outer(u[:, 0], vh[0])
        assert_close(
            layer.weight_orig.grad.movedim(dim, 0).flatten(1), gradient, rtol=1e-3, atol=1e-4
        )
    assert_close(penalty.double(), expected, rtol=1e-5, atol=0)
    assert penalty.shape == ()


def test_it_is_one_node_and_nothing_iterates(model):
    u = model[0].parametrizations.weight[0]._u.clone()
    penalty = spectral_penalty(model)
    nodes = set()
    waiting = [penalty.grad_fn]
    while waiting:
        node = waiting.pop()
        nodes.add(type(node).__name__)
        waiting += [child for child, _ in node.next_functions if child is not None]
    assert [name for name in nodes if "Penalty" in name] == ["PenaltyBackward"]
    assert not any("Mv" in name or "Dot" in name for name in nodes)
    assert torch.equal(model[0].parametrizations.weight[0]._u, u)


def test_its_derivatives():
    layer = spectral_norm(nn.Linear(4, 3).double(), **LIMITLESS)
    key = "parametrizations.weight.original"

    class Penalized(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self):
            return spectral_penalty(self.layer)

    def penalty(weight):
        return functional_call(Penalized(), {f"layer.{key}": weight}, ())

    weight = layer.weight_orig.detach().clone().requires_grad_()
    assert gradcheck(penalty, weight)
    assert gradgradcheck(penalty, weight)


def test_a_shared_weight_counts_once():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    model = apply_spectral_norm(nn.Sequential(first, second), **LIMITLESS)
    assert_close(spectral_penalty(model), sigmas(model)["0.weight"] ** 2 / 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: spectral_norm(nn.LayerNorm(5)),
        lambda: spectral_norm(nn.Linear(4, 3, dtype=torch.complex64)),
        lambda: spectral_norm(nn.Linear(4, 3).bfloat16()),
        lambda: spectral_norm(nn.Linear(4, 3), scale="learned"),
        lambda: spectral_norm(
            nn.Conv2d(2, 3, 3, padding=1), operator="convolution", input_shape=(2, 5, 5)
        ),
    ],
    ids=["vector", "complex", "bfloat16", "scaled", "convolution"],
)
def test_of_whatever_a_spectral_norm_is_on(make):
    layer = make().eval()
    layer.weight  # tells sigma  # noqa: B018
    penalty = spectral_penalty(layer)
    assert penalty.dtype == torch.float32
    assert_close(penalty.detach(), sigmas(layer)["weight"].square() / 2, rtol=1e-4, atol=1e-5)
    penalty.backward()
    assert layer.weight_orig.grad.abs().sum() > 0


def test_after_another_parametrization():
    layer = parametrizations.weight_norm(nn.Linear(4, 3))
    spectral_norm(layer, **LIMITLESS)
    spectral_penalty(layer).backward()
    assert all(p.grad is not None for p in layer.parametrizations.weight.parameters())


def test_a_model_without_any_is_refused():
    with pytest.raises(ValueError, match="no spectral norm of snorm_triton is registered"):
        spectral_penalty(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="weight waits for its module's first forward"):
        spectral_penalty(spectral_norm(nn.LazyLinear(2)))


@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore:The .grad attribute:UserWarning")
def test_compiled_code_leaves_its_graph_for_it(model):
    torch.compiler.reset()
    x = torch.randn(2, 6)

    def loss(x):
        return model(x).square().mean() + spectral_penalty(model)

    assert_close(torch.compile(loss, backend="aot_eager")(x), loss(x))


def test_under_autocast(model):
    with torch.autocast("cpu", torch.bfloat16):
        penalty = spectral_penalty(model)
    torch.testing.assert_close(penalty, spectral_penalty(model))
