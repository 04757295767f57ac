"""Weight norm beside torch.nn.utils.parametrizations.weight_norm: numbers, gradients, keys."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from snorm_triton import weight_norm

DIMS = [0, 1, -2, -1, None]


def twins(kind, dim, backend, dtype=torch.float32):
    """The same layer with our weight norm and with torch's, g as training leaves it."""
    torch.manual_seed(5)
    layer = kind.make().to(dtype)
    ours = weight_norm(copy.deepcopy(layer), kind.parameter, dim, backend=backend)
    theirs = parametrizations.weight_norm(copy.deepcopy(layer), kind.parameter, dim)
    theirs(*(x.to(dtype) if x.is_floating_point() else x for x in kind.inputs()))
    for module in (ours, theirs):
        torch.manual_seed(6)
        with torch.no_grad():
            module.parametrizations[kind.parameter].original0.mul_(1.5).add_(torch.rand(()))
    return ours, theirs


def gradients(module, kind, grad):
    """The weight, and what the gradients of g and v are for that of the weight."""
    weight = getattr(module, kind.parameter)
    originals = module.parametrizations[kind.parameter]
    inputs = originals.original0, originals.original1
    return [weight, *torch.autograd.grad(weight, inputs, grad)]


@pytest.mark.parametrize("dim", DIMS, ids=str)
def test_as_torch(layer_kind, dim, backend, relative_error, report_line):
    ours, theirs = twins(layer_kind, dim, backend)
    grad = torch.randn_like(getattr(ours, layer_kind.parameter))
    errors = [
        relative_error(mine, its)
        for mine, its in zip(
            gradients(ours, layer_kind, grad), gradients(theirs, layer_kind, grad), strict=True
        )
    ]
    report_line(
        f"Weight norm beside torch's, relative errors, backend {backend}",
        f"{layer_kind.name:34} dim {dim!s:5} weight {errors[0]:.0e}  g {errors[1]:.0e}  "
        f"v {errors[2]:.0e}",
    )
    assert max(errors) < 2e-6


def test_the_state_dict_is_torchs(layer_kind):
    ours, theirs = twins(layer_kind, 0, "torch")
    mine, its = ours.state_dict(), theirs.state_dict()
    assert list(mine) == list(its)
    for key in mine:
        assert mine[key].shape == its[key].shape
        assert mine[key].dtype == its[key].dtype
    assert not theirs.load_state_dict(mine).missing_keys
    assert not ours.load_state_dict(its).missing_keys


@pytest.mark.parametrize("dim", [0, 1, None], ids=str)
def test_second_derivatives(dim, backend):
    """Against finite differences: torch's fused operation takes the norms for constants there."""
    torch.manual_seed(7)
    layer = weight_norm(nn.Conv2d(2, 3, 2).double(), dim=dim, backend=backend)
    torch.optim.SGD(layer.parameters(), lr=0.1).step()  # training has begun
    norm = layer.parametrizations.weight[0]
    originals = [p.detach().clone().requires_grad_() for p in (layer.weight_g, layer.weight_v)]
    assert torch.autograd.gradcheck(norm, originals)
    assert torch.autograd.gradgradcheck(norm, originals)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dim", [0, 1, None], ids=str)
def test_half_precision_is_rounded_once(dtype, dim, backend):
    torch.manual_seed(8)
    layer = weight_norm(nn.Linear(300, 20), dim=dim, backend=backend).to(dtype)
    originals = layer.parametrizations.weight
    g, v = originals.original0.double(), originals.original1.double()
    norms = v.norm() if dim is None else v.norm(dim=1 - dim, keepdim=True)
    exact = g * v / norms
    assert layer.weight.dtype == dtype
    # The interpreter cuts bfloat16 off where a GPU rounds it.
    is_cut = backend == "triton" and dtype == torch.bfloat16 and layer.weight.device.type == "cpu"
    spacing = torch.finfo(dtype).eps * (1.01 if is_cut else 0.51)
    assert ((layer.weight.double() - exact).abs() <= exact.abs() * spacing + 1e-7).all()


def test_a_row_of_zeros_stays_one_and_has_a_gradient(backend):
    layer = weight_norm(nn.Linear(5, 3), backend=backend)
    originals = layer.parametrizations.weight
    with torch.no_grad():
        originals.original1[1] = 0
        originals.original0.fill_(2)
    grad = torch.randn(3, 5)
    weight, of_g, of_v = (
        layer.weight,
        *torch.autograd.grad(layer.weight, (originals.original0, originals.original1), grad),
    )
    assert torch.equal(weight[1], torch.zeros(5))
    torch.testing.assert_close(weight[::2].norm(dim=1), torch.full((2,), 2.0))
    assert of_g[1] == 0
    torch.testing.assert_close(of_v[1], 2 * grad[1])
    assert of_v.isfinite().all()


@pytest.mark.parametrize("magnitude", [1e-25, 1e25])
@pytest.mark.parametrize("dim", [0, 1, None], ids=str)
def test_no_square_leaves_the_range(magnitude, dim, backend):
    layer = weight_norm(nn.Conv1d(3, 4, 5), dim=dim, backend=backend)
    expected = layer.weight.detach().clone()
    with torch.no_grad():
        layer.parametrizations.weight.original1.mul_(magnitude)
    torch.testing.assert_close(layer.weight, expected, rtol=1e-5, atol=1e-7)


def test_a_bias_and_a_complex_weight():
    for make, name in ((lambda: nn.Linear(3, 4), "bias"), (complex_linear, "weight")):
        torch.manual_seed(9)
        layer = make()
        expected = getattr(layer, name).detach().clone()
        weight_norm(layer, name)
        torch.testing.assert_close(getattr(layer, name).detach(), expected)
        getattr(layer, name).abs().sum().backward()
        assert layer.parametrizations[name].original1.grad.isfinite().all()


def complex_linear():
    return nn.Linear(3, 4, dtype=torch.complex64)


def test_a_weight_that_is_not_dense(backend):
    layer = nn.Linear(6, 4)
    layer.weight = nn.Parameter(torch.randn(4, 12)[:, ::2])
    expected = layer.weight.detach().clone()
    weight_norm(layer, backend=backend)
    torch.testing.assert_close(layer.weight.detach(), expected)


def test_a_change_before_the_backward_is_an_error(backend):
    layer = weight_norm(nn.Conv2d(2, 3, 2), dim=1, backend=backend)
    output = layer(torch.randn(1, 2, 4, 4)).sum()
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.backward()


def test_norms_that_lie_apart(backend):
    norm = weight_norm(nn.Linear(3, 4), backend=backend).parametrizations.weight[0]
    g = torch.tensor([[2.0]]).expand(4, 1).detach().requires_grad_()
    v = torch.randn(4, 3, requires_grad=True)
    weight = norm(g, v)
    torch.testing.assert_close(weight, 2 * v / v.norm(dim=1, keepdim=True))
    weight.square().sum().backward()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_one_norm_of_one_output(layout, backend):
    """Of a weight with a size of 1 the gradient may lie in any order."""
    torch.manual_seed(10)
    layer = nn.Conv2d(8, 1, 3).to(memory_format=layout)
    theirs = parametrizations.weight_norm(copy.deepcopy(layer), dim=None)
    ours = weight_norm(layer, dim=None, backend=backend)
    target = torch.randn(72)
    for module in (ours, theirs):
        (module.weight.flatten() * target).sum().backward()
    for i in range(2):
        mine, its = (
            getattr(module.parametrizations.weight, f"original{i}").grad
            for module in (ours, theirs)
        )
        torch.testing.assert_close(mine, its)


@pytest.mark.parametrize("magnitude", [1e-30, 1e25])
def test_registration_of_any_magnitude(magnitude):
    layer = nn.Linear(6, 4)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(4, 6) * magnitude)
    before = layer.weight.detach().clone()
    torch.testing.assert_close(weight_norm(layer).weight.detach(), before)
    norm, parameters = layer.parametrizations.weight[0], (layer.weight_g, layer.weight_v)
    transformed = torch.func.vmap(norm)(*(each.detach()[None] for each in parameters))
    torch.testing.assert_close(transformed[0], before)


def test_derivatives_of_any_order_at_a_row_of_zeros():
    norm = weight_norm(nn.Linear(3, 2)).parametrizations.weight[0]
    v = torch.tensor([[1.0, 2, 3], [0, 0, 0]])
    second = torch.func.jacrev(torch.func.jacrev(lambda v: norm(torch.ones(2, 1), v).sum()))(v)
    assert second.isfinite().all()
