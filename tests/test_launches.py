"""Kernel launches, counted where Triton makes them: in the interpreter, by its own executor."""

from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from torch import nn

from snorm_triton import SpectralNormParametrization, apply_spectral_norm, spectral_norm
from snorm_triton.ops.matrix_view import MatrixView, matrix_view
from snorm_triton.ops.row_scaling import RowScaling, RowScalingGradient

pytestmark = [
    pytest.mark.interpreted,
    pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning"),
    # As dynamo looks at its inputs.
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit"),
]
ITERATION = ["foreach_power", "foreach_reduce", "foreach_finish"]
GRADIENT = ["foreach_grad_dot", "foreach_grad_apply"]


@contextmanager
def counted_launches():
    from triton.runtime.interpreter import GridExecutor

    launched = []
    original = GridExecutor.__call__

    def call(self, *args, **kwargs):
        launched.append(self.fn.__name__)
        return original(self, *args, **kwargs)

    with mock.patch.object(GridExecutor, "__call__", call):
        yield launched


def layers(count):
    kinds = [nn.Linear(8, 8), nn.Conv2d(3, 5, 3), nn.ConvTranspose2d(5, 4, 3)]
    return [kinds[i % 3] if i < 3 else nn.Linear(8 + i, 8) for i in range(count)]


class Weights(nn.Module):
    """Returns the weights of its layers: no other computation hides the launches."""

    def __init__(self, modules):
        super().__init__()
        self.layers = nn.ModuleList(modules)

    def forward(self):
        return [layer.weight for layer in self.layers]


def loss_of(weights):
    return sum(weight.float().square().sum() for weight in weights)


@pytest.mark.parametrize("count", [2, 9])
def test_a_model_of_any_number_of_layers_is_three_launches_and_two(count):
    model = apply_spectral_norm(Weights(layers(count)), foreach=True, backend="triton")
    with counted_launches() as forward:
        weights = model()
    assert forward == ITERATION
    with counted_launches() as backward:
        loss_of(weights).backward()
    assert backward == GRADIENT


def compiled(model):
    run = torch.compile(model, backend="aot_eager")
    run()
    return run


@pytest.mark.parametrize("count", [2, 9])
def test_compiled_code_makes_as_few(count):
    torch.compiler.reset()
    run = compiled(apply_spectral_norm(Weights(layers(count)), foreach=True, backend="triton"))
    with counted_launches() as forward:
        weights = run()
    assert forward == ITERATION
    with counted_launches() as backward:
        loss_of(weights).backward()
    assert backward == GRADIENT


@pytest.mark.parametrize("run", [lambda model: model, compiled], ids=["eager", "compiled"])
@pytest.mark.parametrize("count", [2, 9])
def test_an_evaluation_is_two_launches(count, run):
    torch.compiler.reset()
    model = apply_spectral_norm(Weights(layers(count)), foreach=True, backend="triton").eval()
    run = run(model)
    with counted_launches() as forward:
        run()
    assert forward == ["foreach_estimate_parts", "foreach_finish_estimate"]


@pytest.mark.parametrize("run", [lambda model: model, compiled], ids=["eager", "compiled"])
@pytest.mark.parametrize("count", [2, 9])
def test_a_replay_is_one_launch(count, run):
    torch.compiler.reset()
    options = {"foreach": True, "backend": "triton", "power_iter": "update"}
    model = apply_spectral_norm(Weights(layers(count)), **options)
    run = run(model)
    run()
    with counted_launches() as forward:
        run()
    assert forward == ["foreach_divide_and_copy_state"]


@pytest.mark.parametrize("warm", [True, False], ids=["after a forward", "at once"])
def test_a_captured_graph_holds_the_same_launches(warm, monkeypatch):
    model = apply_spectral_norm(Weights(layers(5)), foreach=True, backend="triton")
    if warm:
        loss_of(model()).backward()
    monkeypatch.setattr("snorm_triton.kernels.launch.is_capturing", lambda device: True)
    monkeypatch.setattr("snorm_triton.ops.streams.is_capturing", lambda device: True)
    with counted_launches() as forward:
        weights = model()
    assert forward == ITERATION
    with counted_launches() as backward:
        loss_of(weights).backward()
    assert backward == GRADIENT


def test_every_iteration_of_a_model_is_three_launches():
    options = {"foreach": True, "backend": "triton", "n_power_iterations": 2}
    model = apply_spectral_norm(Weights(layers(3)), **options)
    with counted_launches() as forward:
        model()
    assert forward == ITERATION * 2


@pytest.mark.parametrize("alone", [0, -1], ids=["first", "last"])
def test_a_layer_in_evaluation_leaves_the_others_together(alone):
    model = apply_spectral_norm(Weights(layers(4)), foreach=True, backend="triton")
    model.layers[alone].eval()
    with counted_launches() as forward:
        model()
    assert sorted(forward) == sorted([*ITERATION, "normalize_small"])


def test_each_dtype_has_launches_of_its_own():
    modules = [*layers(4), *(nn.Linear(6, 5 + i, dtype=torch.bfloat16) for i in range(3))]
    model = apply_spectral_norm(Weights(modules), foreach=True, backend="triton")
    with counted_launches() as forward:
        model()
    assert forward == ITERATION * 2


@pytest.mark.parametrize(
    ("layer", "forward", "backward"),
    [
        (nn.Linear(64, 64), 1, 1),
        (nn.Linear(256, 128), 3, 2),
    ],
    ids=["small", "large"],
)
def test_a_single_weight(layer, forward, backward):
    layer = spectral_norm(layer, backend="triton")
    with counted_launches() as launched:
        weight = layer.weight
    assert len(launched) == forward
    with counted_launches() as launched:
        weight.square().sum().backward()
    assert len(launched) == backward


def test_warming_up_a_small_weight_is_one_launch():
    with counted_launches() as launched:
        SpectralNormParametrization(torch.randn(64, 64), backend="triton")
    assert launched == ["normalize_small"]


def row_scaling(shape, dim=0, dtype=torch.float32):
    weight = torch.randn(shape).to(dtype)
    view = MatrixView(1, 1, weight.numel()) if dim is None else matrix_view(weight, dim)
    return RowScaling(weight, view, torch.randn(view.M).to(dtype), dtype)


def scale_rows_and_back(calls):
    """The launches that scale the rows, and those of their gradients."""
    from snorm_triton.kernels.weight_norm_together import scale_rows, scale_rows_backward

    with counted_launches() as forward:
        scaled = scale_rows(calls)
    gradients = [
        RowScalingGradient(call.weight, call.weight, call.view, call.g, norms)
        for call, (_, norms) in zip(calls, scaled, strict=True)
    ]
    with counted_launches() as backward:
        scale_rows_backward(gradients)
    return forward, backward


@pytest.mark.parametrize("count", [2, 9])
def test_the_rows_of_any_number_of_weights_are_one_launch_each_way(count):
    kinds = [((8, 8), 0), ((3, 5, 3, 3), 0), ((5, 4, 3, 3), 1), ((6, 7), None), ((20, 1), 0)]
    calls = [row_scaling(*kinds[i % len(kinds)]) for i in range(count)]
    forward, backward = scale_rows_and_back(calls)
    assert forward == ["foreach_scale_rows"]
    assert backward == ["foreach_differentiate_rows"]


def test_the_rows_of_each_dtype_have_launches_of_their_own():
    dtypes = [torch.float32, torch.bfloat16]
    calls = [row_scaling((6, 5 + i), dtype=dtypes[i % 2]) for i in range(6)]
    forward, backward = scale_rows_and_back(calls)
    assert forward == ["foreach_scale_rows"] * 2
    assert backward == ["foreach_differentiate_rows"] * 2


def test_the_rows_of_a_single_weight_are_one_launch_each_way():
    forward, backward = scale_rows_and_back([row_scaling((70, 100))])
    assert (forward, backward) == (["scale_rows_at_once"], ["differentiate_rows"])


def test_few_long_rows_are_shared_among_programs_in_two_launches():
    long = row_scaling((1, 70000))
    several = ["sum_squares", "scale_rows_of_parts"]
    of_gradients = ["sum_products", "differentiate_rows_of_parts"]
    assert scale_rows_and_back([long]) == (several, of_gradients)
    forward, backward = scale_rows_and_back([row_scaling((8, 8)), long, row_scaling((3, 4))])
    assert sorted(forward) == sorted(["foreach_scale_rows", *several])
    assert sorted(backward) == sorted(["foreach_differentiate_rows", *of_gradients])


def test_a_captured_graph_scales_rows_in_one_launch_too(monkeypatch):
    monkeypatch.setattr("snorm_triton.kernels.launch.is_capturing", lambda device: True)
    forward, backward = scale_rows_and_back([row_scaling((8, 8 + i)) for i in range(3)])
    assert forward == ["foreach_scale_rows"]
    assert backward == ["foreach_differentiate_rows"]


def test_a_weight_that_begins_off_sixteen_bytes_goes_alone():
    calls = [row_scaling((6, 5 + i)) for i in range(3)]
    memory = torch.randn(1 + calls[1].weight.numel())
    calls[1] = calls[1]._replace(weight=memory[1:].view(calls[1].weight.shape))
    forward, backward = scale_rows_and_back(calls)
    assert sorted(forward) == ["foreach_scale_rows", "scale_rows_at_once"]
    assert sorted(backward) == ["differentiate_rows", "foreach_differentiate_rows"]
