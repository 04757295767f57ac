"""Whatever the mode and whatever the layers, a model comes out as normalized one by one."""

import contextlib

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm as torch_spectral_norm
from torch.nn.utils.parametrizations import weight_norm

from snorm_triton import apply_spectral_norm, spectral_norm
from whole_models import Model, assert_alike, iterations, pair, state_of


class MixedDtypes(nn.Module):
    def __init__(self):
        super().__init__()
        dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float32)
        self.layers = nn.ModuleList(nn.Linear(6, 6, dtype=dtype) for dtype in dtypes)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x.to(layer.bias.dtype)).relu()
        return x


class Odd(nn.Module):
    """A vector, a complex and an empty weight, and one like any other."""

    def __init__(self):
        super().__init__()
        self.vector = spectral_norm(nn.LayerNorm(6))
        self.complex = spectral_norm(nn.Linear(6, 5, dtype=torch.complex64))
        self.empty = nn.Linear(5, 1)
        self.empty.weight, self.empty.bias = nn.Parameter(torch.empty(0, 5)), None
        spectral_norm(self.empty)
        self.last = spectral_norm(nn.Linear(5, 4))

    def forward(self, x):
        x = self.complex(self.vector(x).to(torch.complex64)).abs()
        return self.last(x) + self.empty(x).sum()


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.last = nn.Linear(6, 6)
        self.last.weight = self.first.weight

    def forward(self, x):
        return self.last(self.first(x).relu())


def evaluating(model):
    model.eval()
    return contextlib.nullcontext()


def frozen(model):
    model.requires_grad_(False)
    return contextlib.nullcontext()


def partly_frozen(model):
    model.first.requires_grad_(False)
    return contextlib.nullcontext()


def partly_evaluating(model):
    model.first.eval()
    return contextlib.nullcontext()


@pytest.mark.parametrize(
    "mode",
    [
        lambda model: torch.no_grad(),
        lambda model: torch.inference_mode(),
        lambda model: torch.autocast("cpu", torch.bfloat16),
        evaluating,
        frozen,
        partly_frozen,
        partly_evaluating,
    ],
    ids=["no-grad", "inference", "autocast", "eval", "frozen", "partly-frozen", "partly-eval"],
)
def test_every_mode_gives_what_one_by_one_gives(mode):
    together, one_by_one = pair(Model())
    x = torch.randn(3, 6)
    for _ in range(2):
        with mode(together), mode(one_by_one):
            assert_alike(together, one_by_one, x)
    for model in (together, one_by_one):
        model.train().requires_grad_(True)
    assert_alike(together, one_by_one, x)


@pytest.mark.parametrize("asked", [True, False])
def test_an_evaluated_model_iterates_only_where_it_is_asked_to(asked):
    together, one_by_one = pair(Model().eval(), power_iter_on_eval=asked)
    before = state_of(together.last)
    assert_alike(together, one_by_one, torch.randn(3, 6))
    assert iterations(together.last, before) == int(asked)


def partly_torchs():
    model = Model()
    torch_spectral_norm(model.last)
    return model


@pytest.mark.parametrize(
    "make",
    [lambda: nn.Linear(6, 5), MixedDtypes, Odd, partly_torchs],
    ids=["a-single-layer", "several-dtypes", "vector-complex-empty", "partly-torchs"],
)
def test_any_model_comes_out_as_one_by_one(make):
    together, one_by_one = pair(make())
    for _ in range(2):
        assert_alike(together, one_by_one, torch.randn(3, 6))


def test_tied_weights_come_out_as_one_by_one():
    together, one_by_one = pair(Tied())
    weights = [layer.parametrizations.weight for layer in (together.first, together.last)]
    assert weights[0].original is weights[1].original
    for _ in range(2):
        assert_alike(together, one_by_one, torch.randn(3, 6))


def test_a_stacked_normalization_is_left_to_its_accesses():
    model = Model()
    spectral_norm(spectral_norm(model.first, backend="torch"), n_power_iterations=2)
    together, one_by_one = pair(model)
    seen = []
    assert_alike(together, one_by_one, torch.randn(3, 6))
    together(
        torch.randn(3, 6),
        lambda: seen.extend(each.prepared for each in together.first.parametrizations.weight),
    )
    assert seen == [None, None]


@pytest.mark.parametrize("exclude_names", [(), "0"])
@pytest.mark.parametrize("foreach", [None, True, False])
def test_beside_and_on_top_of_weight_norm(foreach, exclude_names):
    torch.manual_seed(0)
    model = nn.Sequential(weight_norm(nn.Conv1d(1, 4, 3)), nn.Conv1d(4, 1, 3))
    apply_spectral_norm(model, foreach=foreach, exclude_names=exclude_names).eval()
    normalized = [parametrize.is_parametrized(layer) for layer in model]
    assert normalized == [True, True]
    norms = [torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() for layer in model]
    model(torch.randn(1, 1, 9)).sum().backward()
    assert abs(norms[1] - 1) < 0.1
    assert (abs(norms[0] - 1) < 0.1) == (not exclude_names)
