"""What cannot be made orthogonal, said in a sentence, and what nearly cannot."""

import copy

import pytest
import torch
from torch import nn

from orthogonal_models import assert_orthonormal, moved, network
from snorm_triton import (
    apply_orthogonal,
    orthogonal,
    remove_orthogonal,
    weight_norm,
)


def test_a_badly_conditioned_start_has_its_polar_factor_for_original():
    torch.manual_seed(5)
    layer = nn.Linear(40, 40)
    u, singular, vh = torch.linalg.svd(torch.randn(40, 40, dtype=torch.float64))
    singular[-1] = 1e-5 * singular[0]
    with torch.no_grad():
        layer.weight.copy_(u @ torch.diag(singular) @ vh)
    orthogonal(layer, orthogonal_map="newton_schulz")
    u, _, vh = torch.linalg.svd(u @ torch.diag(singular) @ vh)
    torch.testing.assert_close(layer.weight.double(), u @ vh, rtol=0, atol=0.02)
    assert_orthonormal(layer.weight)
    assert_orthonormal(layer.parametrizations.weight.original)


def deficient():
    layer = nn.Linear(300, 300)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(300, 299) @ torch.randn(299, 300))
    return layer


def with_a_row(value):
    layer = nn.Linear(4, 3)
    with torch.no_grad():
        layer.weight[1] = value
    return layer


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (deficient, "of its largest: it is rank-deficient"),
        (lambda: with_a_row(0), "its smallest singular value is .* of its largest"),
        (lambda: with_a_row(torch.nan), "values that are not finite"),
    ],
    ids=["product", "row of zeros", "NaN"],
)
def test_a_weight_without_polar_factor_is_refused(make, message):
    torch.manual_seed(6)
    wrong = make()
    model = nn.Sequential(nn.Linear(4, 4), wrong)
    with pytest.raises(ValueError, match=message):
        apply_orthogonal(model, orthogonal_map="newton_schulz")
    assert list(model.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    value = wrong.weight.detach()
    layer = nn.Linear(*reversed(value.shape))
    orthogonal(layer, orthogonal_map="newton_schulz")
    before = layer.weight.detach().clone()
    with pytest.raises(ValueError, match=message):
        layer.weight = value
    assert torch.equal(layer.weight, before)


def complex_linear():
    return nn.Linear(3, 4, dtype=torch.complex64)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: orthogonal(nn.Linear(3, 2), "bias"), ValueError, "two dimensions or more"),
        (lambda: orthogonal(nn.Linear(3, 2), "nothing"), ValueError, "not a parameter of Linear"),
        (lambda: orthogonal(nn.Linear(3, 2), "weight", "qr"), ValueError, "must be one of househ"),
        (lambda: orthogonal(complex_linear(), "weight", "householder"), ValueError, "no complex"),
        (lambda: orthogonal(nn.Linear(3, 2), dim=2), IndexError, r"dim must be in \[-2, 1\]"),
        (lambda: orthogonal(nn.Linear(3, 2), dim="0"), ValueError, "dim must be an integer"),
        (lambda: orthogonal(nn.Linear(3, 2), n_iterations=0), ValueError, "n_iterations must be"),
        (lambda: orthogonal(nn.Linear(3, 2), use_trivialization=1), TypeError, "True or False"),
        (lambda: orthogonal(torch.ones(2, 2)), TypeError, "module must be a torch.nn.Module"),
        (lambda: orthogonal(weight_norm(nn.Linear(3, 2))), ValueError, "has a parametrization al"),
        (lambda: remove_orthogonal(nn.Linear(3, 2)), ValueError, "no orthogonal parametrization"),
        (lambda: remove_orthogonal(network(), recursive=True), ValueError, "no orthogonal"),
        (lambda: apply_orthogonal(network(), name="weight"), TypeError, "apply_orthogonal takes"),
        (lambda: apply_orthogonal(network(), backend="torch"), TypeError, "unknown option 'bac"),
    ],
)
def test_bad_input_is_told_in_a_sentence(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("kind", ["matrix_exp", "cayley"])
def test_maps_that_have_no_inverse(kind):
    layer = orthogonal(nn.Linear(3, 3), "weight", kind, use_trivialization=False)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(NotImplementedError, match="use_trivialization=True only"):
        layer.weight = torch.eye(3)
    torch.testing.assert_close(layer.state_dict(), before)


def test_a_value_of_another_shape_is_refused(kind):
    layer = orthogonal(nn.Linear(3, 3), orthogonal_map=kind)
    with pytest.raises(ValueError, match=r"of the weight's shape \(3, 3\), got \(2, 3\)"):
        layer.weight = torch.ones(2, 3)


def test_a_checkpoint_that_does_not_fit_changes_nothing():
    layer = moved(orthogonal(nn.Linear(4, 3)))
    before = copy.deepcopy(layer.state_dict())
    wrong = {**before, "parametrizations.weight.0.base": torch.eye(3)}
    wrong["parametrizations.weight.original"] = torch.zeros(3, 4)
    with pytest.raises(RuntimeError, match=r"size mismatch for parametrizations.weight.0.base"):
        layer.load_state_dict(wrong)
    torch.testing.assert_close(layer.state_dict(), before)


def test_on_another_parametrization_without_a_base():
    layer = orthogonal(weight_norm(nn.Linear(4, 3)), use_trivialization=False)
    assert_orthonormal(layer.weight)
    layer(torch.ones(1, 4)).sum().backward()
    assert layer.parametrizations.weight.original1.grad is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.complex64])
def test_a_value_of_another_dtype_changes_nothing(dtype):
    layer = orthogonal(nn.Linear(3, 3))
    before = layer.weight.detach().clone()
    with pytest.raises(ValueError, match=r"must be torch\.float32 as the weight, got"):
        layer.weight = -torch.eye(3, dtype=dtype)
    assert torch.equal(layer.weight, before)
