"""spectral_norm(conv, operator="convolution"): the layer's own norm becomes 1."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint

from convolutions import KINDS, dense, identify
from snorm_triton import (
    apply_spectral_norm,
    backend_report,
    convert_spectral_norm,
    fold,
    refresh_spectral_norm,
    remove_spectral_norm,
    sigmas,
    spectral_norm,
)
from snorm_triton.ops.convolution import Convolution

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit"),
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),
]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()


def largest(layer, shape):
    return torch.linalg.matrix_norm(dense(copy.deepcopy(layer).double(), shape), 2)


def normalized(make=lambda: nn.Conv2d(3, 4, 3, padding=1, bias=False), shape=(3, 6, 5), **options):
    torch.manual_seed(0)
    return spectral_norm(make(), operator="convolution", input_shape=shape, **options)


@pytest.mark.parametrize("kind", KINDS, ids=identify)
def test_the_norm_of_the_dense_operator(kind, report_line):
    torch.manual_seed(1)
    layer = kind.make()
    exact = largest(layer, kind.input_shape)
    spectral_norm(layer, operator="convolution", input_shape=kind.input_shape)
    refresh_spectral_norm(layer, 400)
    convolution = Convolution.of(layer, kind.input_shape, layer.weight_orig)
    assert layer.weight_u.shape == convolution.output_shape
    assert layer.weight_v.shape == kind.input_shape
    (sigma,) = sigmas(layer).values()
    normalized = largest(layer.eval(), kind.input_shape)
    report_line(
        "The convolution's own norm after 400 iterations",
        f"{kind.name:40} sigma {sigma:8.5f}  exact {exact:8.5f}  normalized {normalized:.6f}",
    )
    assert abs(sigma / exact - 1) < 1e-3
    assert abs(normalized - 1) < 1e-3


def test_the_gradient_is_that_of_the_singular_value():
    """Of W / sigma with u and v converged, by differentiating the dense operator's norm."""
    layer = normalized(dtype_double, (2, 5, 4))
    refresh_spectral_norm(layer, 3000)
    weight = layer.weight_orig
    target = torch.randn_like(weight)
    (ours,) = torch.autograd.grad((layer.weight * target).sum(), weight)

    def exact(w):
        columns = torch.eye(40, dtype=w.dtype).view(40, 2, 5, 4)
        matrix = nn.functional.conv2d(columns, w, padding=1).flatten(1)
        return (w / torch.linalg.matrix_norm(matrix, 2) * target).sum()

    (expected,) = torch.autograd.grad(exact(weight), weight)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-7)


def dtype_double():
    return nn.Conv2d(2, 3, 3, padding=1, bias=False, dtype=torch.float64)


def test_the_input_shape_is_that_of_the_first_input():
    layer = spectral_norm(nn.Conv1d(3, 4, 5, bias=False), operator="convolution")
    assert backend_report(layer)[0].backend == "none"
    x = torch.randn(2, 3, 11)
    first = layer(x)
    assert layer.weight_v.shape == (3, 11)
    assert largest(layer.eval(), (3, 11)) < 1.1
    assert not torch.allclose(first, nn.functional.conv1d(x, layer.weight_orig))
    unbatched = spectral_norm(nn.Conv1d(3, 4, 5), operator="convolution")
    unbatched(x[0])
    assert unbatched.weight_v.shape == (3, 11)


def test_a_lazy_convolution():
    layer = spectral_norm(nn.LazyConv2d(4, 3, bias=False), operator="convolution")
    layer(torch.randn(1, 2, 6, 6))
    refresh_spectral_norm(layer, 200)
    assert abs(largest(layer.eval(), (2, 6, 6)) - 1) < 1e-3


def test_a_checkpoint_is_loaded_before_the_first_forward():
    trained = normalized()
    trained(torch.randn(2, 3, 6, 5)).sum().backward()
    file = io.BytesIO()
    torch.save(trained.state_dict(), file)
    file.seek(0)
    layer = spectral_norm(nn.Conv2d(3, 4, 3, padding=1, bias=False), operator="convolution")
    assert not layer.load_state_dict(torch.load(file)).missing_keys
    layer.eval(), trained.eval()
    x = torch.randn(2, 3, 6, 5)
    torch.testing.assert_close(layer(x), trained(x))


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "file"]
)
def test_copies(copied):
    layer = normalized()
    layer(torch.randn(1, 3, 6, 5))
    twin = copied(layer)
    x = torch.randn(1, 3, 6, 5)
    torch.testing.assert_close(twin(x), layer(x))
    remove_spectral_norm(twin)
    layer(x)
    assert "parametrizations" not in dict(twin.named_children())


def test_training_iterates_and_evaluation_does_not():
    layer = normalized()
    u = layer.weight_u.clone()
    layer.eval()(torch.randn(1, 3, 6, 5))
    assert torch.equal(layer.weight_u, u)
    layer.train()(torch.randn(1, 3, 6, 5)).sum().backward()
    assert not torch.equal(layer.weight_u, u)


@pytest.mark.parametrize("policy", ["access", "update"])
def test_a_training_run_keeps_the_norm_at_1(policy):
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Conv1d(2, 4, 3, padding=1, bias=False), nn.ReLU(), nn.ConvTranspose1d(4, 1, 4, 2, 1)
    )
    apply_spectral_norm(model, operator="convolution", power_iter=policy)
    x = torch.randn(8, 2, 9)
    model(x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        (-model(x).mean()).backward()
        optimizer.step()
    model.eval()
    assert abs(largest(model[0], (2, 9)) - 1) < 0.05
    x = torch.randn(2, 2, 9)
    expected = model(x)
    assert fold(model) == ["0.weight", "2.weight"]
    torch.testing.assert_close(model(x), expected)


def test_half_precision_and_zero_weights():
    layer = normalized().half()
    assert layer.weight_u.dtype == torch.float32
    assert layer.weight.dtype == torch.float16
    zero = normalized()
    with torch.no_grad():
        zero.parametrizations.weight.original.zero_()
    (of_zero,) = torch.autograd.grad(zero.weight.sum(), zero.parametrizations.weight.original)
    assert torch.equal(of_zero, torch.ones_like(of_zero))


def test_checkpointed_and_compiled():
    layer, x = normalized(), torch.randn(2, 3, 6, 5, requires_grad=True)
    twin = copy.deepcopy(layer)
    layer(x).square().sum().backward()
    checkpoint(twin, x, use_reentrant=False).square().sum().backward()
    torch.testing.assert_close(twin.weight_orig.grad, layer.weight_orig.grad)
    twin = copy.deepcopy(layer)
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    torch.testing.assert_close(twin.weight_u, layer.weight_u)
    exported = torch.export.export(layer.eval(), (x.detach(),))
    torch.testing.assert_close(exported.module()(x), layer(x))


def test_transforms():
    layer = normalized().eval()
    parameters, x = dict(layer.named_parameters()), torch.randn(4, 3, 6, 5)

    def loss(parameters, each):
        return functional_call(layer, parameters, (each,)).square().sum()

    whole = grad(loss)(parameters, x)
    each = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for name in whole:
        torch.testing.assert_close(each[name].sum(0), whole[name], rtol=1e-4, atol=1e-4)


def test_selection_takes_convolutions_alone():
    model = nn.Sequential(nn.Conv1d(2, 2, 1), nn.Flatten(), nn.Linear(8, 2))
    apply_spectral_norm(model, operator="convolution")
    model(torch.randn(1, 2, 4))
    assert [each.name for each in backend_report(model)] == ["0.weight"]


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda: nn.Linear(3, 3), {}, "is of the weight of a Conv"),
        (conv := lambda: nn.Conv2d(3, 4, 3), {"input_shape": (3, 8)}, "input_shape must have 3"),
        (conv, {"input_shape": (2, 8, 8)}, "input_shape must begin with 3 channels"),
        (conv, {"input_shape": (3, 2, 2)}, "input_shape is too small"),
        (conv, {"input_shape": (3, -1, 2)}, "input_shape must be positive integers"),
        (conv, {"input_shape": 8}, "input_shape must be positive integers"),
        (conv, {"operator": "matrix", "input_shape": (3, 8, 8)}, "of operator='convolution' alone"),
        (conv, {"operator": "conv"}, "operator must be one of matrix, convolution"),
        (conv, {"backend": "triton"}, "torch convolves"),
        (conv, {"init_on_first_forward": False}, "waits for an input_shape"),
    ],
)
def test_bad_input_is_told_in_a_sentence(make, options, message):
    layer = make()
    with pytest.raises(ValueError, match=message), warnings.catch_warnings():
        spectral_norm(layer, **{"operator": "convolution", **options})
    assert isinstance(layer.weight, nn.Parameter)


def test_it_is_not_converted_to_torch():
    with pytest.raises(ValueError, match="operator='convolution'"):
        convert_spectral_norm(normalized(), to="torch")


def waiting(make=lambda: nn.Conv2d(3, 4, 3, bias=False)):
    return spectral_norm(make(), operator="convolution")


def test_the_first_forward_may_be_of_any_kind():
    x = torch.randn(2, 3, 6, 5, requires_grad=True)
    by_name = waiting()
    by_name(input=x)
    assert by_name.weight_v.shape == (3, 6, 5)
    checkpointed = waiting()
    checkpoint(checkpointed, x, use_reentrant=False).sum().backward()
    assert checkpointed.weight_orig.grad.isfinite().all()
    inferred = waiting()
    with torch.inference_mode():
        inferred(x)
    inferred(x).sum().backward()


def test_the_first_forward_cannot_be_of_a_replica():
    layer = waiting()
    given = {"weight": torch.randn(4, 3, 3, 3)}
    with pytest.raises(RuntimeError, match="must be one of the module itself"):
        functional_call(layer, given, (torch.randn(1, 3, 6, 5),))
    layer(torch.randn(1, 3, 6, 5))
    assert list(dict(layer.named_parameters())) == ["parametrizations.weight.original"]


def test_checkpoints_of_lazy_and_of_other_norms():
    trained = normalized()
    trained(torch.randn(2, 3, 6, 5))
    lazy = waiting(lambda: nn.LazyConv2d(4, 3, padding=1, bias=False))
    assert not lazy.load_state_dict(trained.state_dict()).missing_keys
    x = torch.randn(2, 3, 6, 5)
    lazy.eval(), trained.eval()
    torch.testing.assert_close(lazy(x), trained(x))
    of_matrix = spectral_norm(nn.Conv2d(3, 4, 3, bias=False)).state_dict()
    with pytest.raises(RuntimeError, match="Unexpected key"):
        waiting().load_state_dict(of_matrix)


def test_compiled_checkpoints_take_what_the_forward_took():
    layer = normalized(dtype_double, (2, 5, 4))
    layer(torch.randn(1, 2, 5, 4, dtype=torch.float64))
    twin, x = copy.deepcopy(layer), torch.randn(3, 2, 5, 4, dtype=torch.float64)
    compiled = torch.compile(
        lambda x: checkpoint(twin, x, use_reentrant=False), backend="aot_eager"
    )
    for run in (layer, compiled):
        run(x).square().sum().backward()
    torch.testing.assert_close(twin.weight_orig.grad, layer.weight_orig.grad)
    torch.testing.assert_close(twin.weight_u, layer.weight_u)


def test_compiled_code_iterates_once_an_update():
    layer = normalized(power_iter="update")
    x = torch.randn(2, 3, 6, 5)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        compiled(x).sum().backward()
        optimizer.step()
        before = layer.weight_u.clone()
        compiled(x)
        once = layer.weight_u.clone()
        assert not torch.equal(once, before)
        compiled(x)
        assert torch.equal(layer.weight_u, once)


@pytest.mark.parametrize("kind", KINDS[::5], ids=identify)
def test_the_operator_has_the_geometry(kind):
    layer = spectral_norm(kind.make(), operator="convolution", input_shape=kind.input_shape)
    twin, x = copy.deepcopy(layer), torch.randn(2, *kind.input_shape, dtype=torch.float64)
    torch.optim.SGD(layer.parameters(), lr=0.1).step()  # training has begun
    compiled = torch.compile(twin, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    torch.testing.assert_close(twin.weight_u, layer.weight_u)
