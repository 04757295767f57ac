"""Orthogonal weights beside torch's, and the polar factor beside that of singular vectors."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from snorm_triton import OrthogonalParametrization, orthogonal
from snorm_triton.ops import newton_schulz

TORCHS_MAPS = [None, "householder", "matrix_exp", "cayley"]
SHAPES = {"square": (48, 48), "tall": (300, 40), "wide": (40, 300), "batch": (3, 20, 30)}
CONDITIONS = [1, 1.1, 3, 10, 100, 1000]


def register_both(layer, name, kind, use_trivialization):
    """The same layer with our map and with torch's, from the same random numbers, then trained."""
    pair = []
    for function in (orthogonal, parametrizations.orthogonal):
        each = copy.deepcopy(layer)
        torch.manual_seed(6)
        function(each, name, kind, use_trivialization=use_trivialization)
        with torch.no_grad():
            original = each.parametrizations[name].original
            change = torch.randn_like(original)
            change.diagonal(dim1=-2, dim2=-1).zero_()  # householder has no gradient of it
            original.add_(change, alpha=0.1)
        pair.append(each)
    return pair


def real(tensor):
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def assert_as_torchs(ours, theirs, name, relative_error):
    """Weights, gradients and state dicts; the errors of the first two."""
    grad = torch.randn_like(getattr(theirs, name))
    weights, gradients = [], []
    for each in (ours, theirs):
        weights.append(getattr(each, name))
        original = each.parametrizations[name].original
        gradients.append(torch.autograd.grad(weights[-1], original, grad)[0])
    mine, its = ours.state_dict(), theirs.state_dict()
    assert list(mine) == list(its)
    errors = [relative_error(*map(real, pair)) for pair in (weights, gradients)]
    assert max(errors) < 1e-5
    for key in mine:
        assert mine[key].shape == its[key].shape
        assert mine[key].dtype == its[key].dtype
        torch.testing.assert_close(mine[key], its[key], rtol=1e-5, atol=1e-5)
    for to, of in ((ours, its), (theirs, mine)):
        result = to.load_state_dict(copy.deepcopy(of))
        assert not result.missing_keys
        assert not result.unexpected_keys
    torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-5, atol=1e-5)
    return errors


@pytest.mark.parametrize("use_trivialization", [True, False], ids=["base", "no base"])
@pytest.mark.parametrize("kind", TORCHS_MAPS, ids=str)
def test_as_torch(layer_kind, kind, use_trivialization, relative_error, report_line):
    torch.manual_seed(5)
    layer, name = layer_kind.make(), layer_kind.parameter
    pair = register_both(layer, name, kind, use_trivialization)
    weight, gradient = assert_as_torchs(*pair, name, relative_error)
    report_line(
        "Orthogonal weights beside torch's, relative errors",
        f"{layer_kind.name:34} {kind!s:12} base {use_trivialization!s:5} weight {weight:.0e}  "
        f"gradient {gradient:.0e}",
    )


@pytest.mark.parametrize("use_trivialization", [True, False], ids=["base", "no base"])
@pytest.mark.parametrize("kind", [None, "matrix_exp", "cayley"], ids=str)
@pytest.mark.parametrize("shape", [(5, 5), (7, 4), (4, 7)], ids=str)
def test_unitary_as_torch(shape, kind, use_trivialization, relative_error):
    torch.manual_seed(5)
    layer = nn.Linear(*shape, dtype=torch.complex64)
    pair = register_both(layer, "weight", kind, use_trivialization)
    assert_as_torchs(*pair, "weight", relative_error)


@pytest.mark.parametrize("kind", TORCHS_MAPS, ids=str)
def test_assigning_as_torch(kind):
    torch.manual_seed(5)
    ours, theirs = register_both(nn.Linear(6, 9), "weight", kind, True)
    for value in (torch.randn(9, 6), torch.linalg.qr(torch.randn(9, 6))[0]):
        for each in (ours, theirs):
            torch.manual_seed(7)
            each.weight = value.clone()
        torch.testing.assert_close(ours.weight, theirs.weight)
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def matrices(shape, condition, dtype):
    """Of singular values evenly spread, by their logarithm; and their polar factors."""
    *batch, m, n = shape
    k = min(m, n)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    u = torch.linalg.qr(torch.randn(*batch, m, k, dtype=wide))[0]
    v = torch.linalg.qr(torch.randn(*batch, n, k, dtype=wide))[0]
    singular = torch.logspace(0, -1, k, base=condition, dtype=torch.float64)
    return ((u * singular) @ v.mH).to(dtype), u @ v.mH


def tall(x):
    """As a batch of tall matrices."""
    x = x.flatten(0, -3) if x.ndim > 2 else x[None]
    return x if x.shape[-2] >= x.shape[-1] else x.mH


def defect(q):
    """max|Q^H Q - I|, of the side that is orthonormal."""
    q = tall(q)
    return (q.mH @ q - torch.eye(q.shape[-1])).abs().max().item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=["real", "complex"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("condition", CONDITIONS)
def test_newton_schulz_is_the_polar_factor(condition, shape, dtype, report_line, request):
    torch.manual_seed(8)
    x, exact = matrices(shape, condition, dtype)
    norm = OrthogonalParametrization(x, orthogonal_map="newton_schulz")
    fixed = newton_schulz.recorded(tall(x), norm.options.n_iterations).q
    q = norm(x)
    steps = len(newton_schulz.record(tall(x), norm.options.n_iterations).steps)
    error = ((q - exact).norm() / exact.norm()).item()
    report_line(
        "Newton-Schulz: max|Q^H Q - I|, on a CPU and in a fixed number of steps",
        f"{request.node.callspec.id:28} {defect(q):.0e} in {steps}  {defect(fixed):.0e} in "
        f"{norm.options.n_iterations}   from the polar factor {error:.0e}",
    )
    assert defect(q) < 1e-5
    assert defect(fixed) < 1e-5
    assert error < 1e-6 + 1e-7 * condition


def test_more_iterations_reach_further():
    torch.manual_seed(9)
    x, exact = matrices((30, 30), 1e5, torch.float64)
    few, many = (
        OrthogonalParametrization(x, orthogonal_map="newton_schulz", n_iterations=n)(x)
        for n in (8, 12)
    )
    assert defect(few) > 0.1
    torch.testing.assert_close(many, exact)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_no_product_leaves_the_range(scale):
    torch.manual_seed(10)
    x, exact = matrices((20, 30), 100, torch.float32)
    q = OrthogonalParametrization(x, orthogonal_map="newton_schulz")(x * scale)
    torch.testing.assert_close(q.double(), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 4), (4, 3), (4, 4)], ids=str)
def test_zeros_in_training_leave_gradients_finite(shape):
    x = torch.randn(shape)
    norm = OrthogonalParametrization(x, orthogonal_map="newton_schulz")
    for value in (x, torch.zeros(shape)):
        value[0] = 0
        value.requires_grad_()
        q = norm(value)
        assert q.isfinite().all()
        assert torch.autograd.grad(q, value, torch.ones(shape))[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=["real", "complex"])
@pytest.mark.parametrize("shape", [(4, 4), (5, 3), (3, 5), (2, 3, 2)], ids=str)
@pytest.mark.parametrize("condition", [1, 30])
def test_newton_schulz_has_right_derivatives(condition, shape, dtype):
    torch.manual_seed(11)
    x = matrices(shape, condition, dtype)[0].requires_grad_()
    norm = OrthogonalParametrization(x, orthogonal_map="newton_schulz")
    assert torch.autograd.gradcheck(norm, x)
    assert torch.autograd.gradgradcheck(norm, x)


@pytest.mark.parametrize("condition", [1, 1.1, 3, 1000])
def test_its_gradient_is_that_of_the_polar_factor(condition, relative_error):
    """H S + S H = Q^T G - G^T Q gives the part within the columns, (I - Q Q^T) G / H the other."""
    torch.manual_seed(12)
    x, q = matrices((30, 20), condition, torch.float64)
    grad = torch.randn_like(x)
    h, vectors = torch.linalg.eigh(q.T @ x)
    turned = vectors.T @ (q.T @ grad - grad.T @ q) @ vectors
    within = vectors @ (turned / (h[:, None] + h)) @ vectors.T
    outside = (grad - q @ (q.T @ grad)) @ (vectors / h) @ vectors.T
    exact = q @ within + outside
    x.requires_grad_()
    weight = OrthogonalParametrization(x, orthogonal_map="newton_schulz")(x)
    assert relative_error(torch.autograd.grad(weight, x, grad)[0], exact) < 1e-6


@pytest.mark.parametrize("condition", [1, 1.1, 3, 1000])
@pytest.mark.parametrize("record", [newton_schulz.record, newton_schulz.recorded])
def test_its_gradient_is_rounded_little(condition, record, relative_error):
    torch.manual_seed(14)
    x, _ = matrices((1, 60, 60), condition, torch.float64)
    grad = torch.randn_like(x)
    exact = newton_schulz.gradient(grad, newton_schulz.recorded(x, 8, twice=True))
    rounded = newton_schulz.gradient(grad.float(), record(x.float(), 8))
    assert relative_error(rounded, exact) < 3e-6 + 3e-8 * condition


@pytest.mark.parametrize("kind", ["householder", "matrix_exp", "cayley"])
@pytest.mark.parametrize(("dim", "shape"), [(0, (4, 12)), (1, (3, 16)), (-1, (2, 24))])
def test_derivatives_with_dim(kind, dim, shape):
    torch.manual_seed(13)
    layer = orthogonal(nn.Conv2d(3, 4, 2).double(), orthogonal_map=kind, dim=dim)
    (norm,) = layer.parametrizations.weight
    matrix = torch.randn(shape, dtype=torch.float64)
    rest = [size for axis, size in enumerate(layer.weight.shape) if axis != dim % 4]
    original = matrix.reshape(shape[0], *rest).movedim(0, dim)
    assert torch.autograd.gradcheck(norm, original.requires_grad_())
    weight = norm(original).movedim(dim, 0).flatten(1)
    torch.testing.assert_close(weight @ weight.T, torch.eye(shape[0], dtype=torch.float64))
