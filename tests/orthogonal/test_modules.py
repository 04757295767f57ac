"""What becomes of a module with an orthogonal weight, and of a model of such."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from snorm_triton import (
    OrthogonalParametrization,
    apply_orthogonal,
    fold,
    orthogonal,
    remove_orthogonal,
    spectral_norm,
    weight_norm,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit"),
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),
]
MAPS = ["householder", "matrix_exp", "cayley", "newton_schulz"]


@pytest.fixture(params=MAPS)
def kind(request):
    return request.param


def assert_orthonormal(weight, dim=None, atol=1e-5):
    rows = weight.detach() if dim is None else weight.detach().movedim(dim, 0).flatten(1)
    rows = rows.float() if rows.shape[-2] <= rows.shape[-1] else rows.float().mT
    identity = torch.eye(rows.shape[-2]).expand(*rows.shape[:-1], -1)
    torch.testing.assert_close(rows @ rows.mT, identity, rtol=0, atol=atol)


def begin_training(model):
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    return model


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 9))


def steps(model, x):
    """Outputs and gradients of a step of training."""
    output = model(x)
    return [output, *torch.autograd.grad(output.square().mean(), list(model.parameters()))]


def moved(model):
    """As training leaves it."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            torch.manual_seed(len(name))
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return begin_training(model)


def test_lazy_modules(lazy_kind, kind):
    lazy = orthogonal(lazy_kind.make(), orthogonal_map=kind, dim=0)
    inputs = lazy_kind.inputs()
    expected = lazy(*inputs)
    assert isinstance(lazy.parametrizations.weight[0], OrthogonalParametrization)
    assert_orthonormal(lazy.weight, 0)
    other = orthogonal(lazy_kind.make(), orthogonal_map=kind, dim=0)
    assert not other.load_state_dict(lazy.state_dict()).missing_keys
    torch.testing.assert_close(other(*inputs), expected)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "file"]
)
def test_copies_are_independent(copied, kind):
    model = moved(apply_orthogonal(network(), orthogonal_map=kind, foreach=True))
    x = torch.randn(2, 6)
    expected = model(x)
    twin = copied(model)
    torch.testing.assert_close(twin(x), expected)
    twin[0].weight = torch.randn(6, 6)
    remove_orthogonal(twin, recursive=True)
    with torch.no_grad():
        twin[2].weight.zero_()
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("order", ["before", "after"])
def test_half_precision_is_rounded_once(dtype, order, kind):
    torch.manual_seed(1)
    layer = nn.Linear(20, 30)
    if order == "before":
        layer = orthogonal(layer.to(dtype), orthogonal_map=kind)
    else:
        layer = orthogonal(layer, orthogonal_map=kind).to(dtype)
    begin_training(layer)
    (norm,) = layer.parametrizations.weight
    if kind != "newton_schulz":
        assert norm.base.dtype == torch.float32
    weight = layer.weight
    assert weight.dtype == layer.parametrizations.weight.original.dtype == dtype
    exact = copy.deepcopy(layer).double()
    torch.testing.assert_close(weight, exact.weight.to(dtype), rtol=2**-7, atol=1e-5)
    assert_orthonormal(exact.weight)
    layer(torch.randn(2, 20, dtype=dtype)).float().sum().backward()
    assert layer.parametrizations.weight.original.grad.dtype == dtype


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_convolutions_by_dim(kind, dim):
    torch.manual_seed(2)
    for layer in (nn.Conv2d(3, 5, 3), nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)):
        expected = layer.weight.stride()
        orthogonal(layer, orthogonal_map=kind, dim=dim)
        moved(layer)
        assert_orthonormal(layer.weight, dim)
        if kind == "newton_schulz" and dim == 0:
            assert layer.weight.stride() == expected
        layer(torch.randn(1, 3, 4, 4)).sum().backward()
        assert layer.parametrizations.weight.original.grad.shape == (5, 3, 3, 3)


@pytest.mark.parametrize(
    "write",
    [
        lambda layer: nn.init.normal_(layer.weight, 0, 0.5),
        lambda layer: layer.weight.data.normal_(0, 0.5),
        lambda layer: nn.init.orthogonal_(layer.weight),
    ],
    ids=["init", "data", "orthogonal"],
)
def test_what_is_written_before_the_first_forward_stays(write, kind):
    layer = orthogonal(nn.Linear(4, 4), orthogonal_map=kind)
    torch.manual_seed(3)
    write(layer)
    plain = nn.Linear(4, 4)
    torch.manual_seed(3)
    write(plain)
    layer(torch.zeros(1, 4))
    made = torch.linalg.qr(plain.weight)
    expected = made.Q * made.R.diagonal().sign()
    if kind == "newton_schulz":
        u, _, vh = torch.linalg.svd(plain.weight)
        expected = u @ vh
    torch.testing.assert_close(layer.weight, expected, rtol=1e-4, atol=1e-5)


def test_a_row_is_written_before_the_first_forward(kind):
    layer = orthogonal(nn.Linear(4, 3), orthogonal_map=kind)
    rest = layer.weight.detach()[1:].clone()
    new = torch.linalg.qr(layer.weight.detach().T, mode="complete").Q.T[3]
    with torch.no_grad():
        layer.weight[0] = new
    layer(torch.zeros(1, 4))
    torch.testing.assert_close(layer.weight, torch.cat([new[None], rest]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("use_trivialization", [True, False], ids=["base", "no base"])
def test_reset_parameters_initializes_the_weight(use_trivialization, kind):
    layer = orthogonal(nn.Linear(6, 6), "weight", kind, use_trivialization=use_trivialization)
    moved(layer)
    before = layer.weight.detach().clone()
    torch.manual_seed(4)
    layer.reset_parameters()
    after = layer.weight.detach()
    assert (after - before).norm() > 0.1
    assert_orthonormal(after)
    if use_trivialization:  # else the weight lies transposed in memory, where it is drawn
        torch.manual_seed(4)
        torch.testing.assert_close(after, orthogonal(nn.Linear(6, 6), "weight", kind).weight)


def test_fold_bakes_every_kind_in(kind):
    model = network()
    orthogonal(model[0], orthogonal_map=kind)
    parametrizations.orthogonal(model[2])
    spectral_norm(orthogonal(model[4], orthogonal_map=kind))
    moved(model).eval()
    x = torch.randn(2, 6)
    expected = model(x)
    assert fold(model) == ["0.weight", "2.weight", "4.weight"]
    torch.testing.assert_close(model(x), expected)
    assert model.state_dict().keys() == network().state_dict().keys()


def test_an_unchanged_weight_is_computed_once_in_evaluation(kind):
    layer = moved(orthogonal(nn.Linear(5, 4), orthogonal_map=kind)).eval()
    with torch.no_grad():
        first = layer.weight
        assert layer.weight.data_ptr() == first.data_ptr()
        layer.parametrizations.weight.original.add_(0.1 * torch.randn(4, 5))
        second = layer.weight.clone()
        assert not torch.allclose(second, first)
        if kind != "newton_schulz":
            layer.parametrizations.weight[0].base.neg_()
            torch.testing.assert_close(layer.weight, -second)
    assert layer.weight.requires_grad


def test_foreach_is_as_one_by_one(kind):
    x = torch.randn(3, 6)
    one_by_one, together = (
        moved(apply_orthogonal(network(), orthogonal_map=kind, foreach=foreach))
        for foreach in (False, True)
    )
    together.load_state_dict(one_by_one.state_dict())
    torch.testing.assert_close(steps(together, x), steps(one_by_one, x))
    together.eval(), one_by_one.eval()
    with torch.no_grad():
        torch.testing.assert_close(together(x), one_by_one(x))
        torch.testing.assert_close(together(x), one_by_one(x))


def test_gradients_of_a_part_and_again():
    model = moved(apply_orthogonal(network(), orthogonal_map="newton_schulz", foreach=True))
    x = torch.randn(3, 6)
    _, *expected = steps(model, x)
    loss = model(x).square().mean()
    first = model[0].parametrizations.weight.original
    (part,) = torch.autograd.grad(loss, first, retain_graph=True)
    loss.backward()
    torch.testing.assert_close(first.grad, part)
    for parameter, each in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, each)


def test_a_change_in_place_of_one_is_none_of_another():
    """Weights that are computed together lie in memory of their own."""
    model = moved(apply_orthogonal(network(), orthogonal_map="newton_schulz", foreach=True))
    handed_out = []

    def change(module, args):
        handed_out.append(model[2].weight)
        with torch.no_grad():
            module.weight.mul_(2)

    model[0].register_forward_pre_hook(change)
    with pytest.warns(UserWarning, match="'0.weight' was changed in place"):
        model(torch.randn(1, 6))
    assert_orthonormal(handed_out[0])


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()  # what was compiled for others counts towards a limit


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("foreach", [False, True])
def test_compiled_in_one_graph(foreach, kind):
    ours = moved(apply_orthogonal(network(), orthogonal_map=kind, foreach=foreach))
    x = torch.randn(3, 6)
    expected = steps(ours, x)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(steps(compiled, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_by_inductor():
    ours = moved(apply_orthogonal(network(), orthogonal_map="newton_schulz"))
    x = torch.randn(3, 6)
    expected = steps(ours, x)
    compiled = torch.compile(ours, fullgraph=True)
    torch.testing.assert_close(steps(compiled, x), expected, rtol=1e-4, atol=1e-5)


def test_exported(kind):
    ours = moved(apply_orthogonal(network(), orthogonal_map=kind)).eval()
    x = torch.randn(3, 6)
    program = torch.export.export(ours, (x,))
    torch.testing.assert_close(program.module()(x), ours(x), rtol=1e-4, atol=1e-5)
    traced = torch.jit.trace(ours, x, check_trace=False)
    torch.testing.assert_close(traced(x), ours(x), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # torch's tril_
def test_transforms(kind):
    layer = moved(orthogonal(nn.Linear(5, 3).double(), orthogonal_map=kind))
    x = torch.randn(4, 5, dtype=torch.float64)
    parameters = dict(layer.named_parameters())

    def loss(parameters, each):
        return functional_call(layer, parameters, (each,)).square().sum()

    def gradients(each):
        of = torch.autograd.grad(loss(parameters, each), list(parameters.values()))
        return dict(zip(parameters, of, strict=True))

    torch.testing.assert_close(grad(loss)(parameters, x), gradients(x))
    each = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    apart = [gradients(row) for row in x]
    torch.testing.assert_close(each, {key: torch.stack([a[key] for a in apart]) for key in each})
    many = {key: torch.stack([value, 2 * value]) for key, value in parameters.items()}
    assert vmap(loss, in_dims=(0, None))(many, x).shape == (2,)
    tangents = {key: torch.ones_like(value) for key, value in parameters.items()}
    if kind != "householder":  # torch has no forward derivative of its product
        _, along = jvp(lambda p: loss(p, x), (parameters,), (tangents,))
        of = gradients(x)
        torch.testing.assert_close(along, sum(value.sum() for value in of.values()))


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("foreach", [False, True])
def test_activation_checkpoints(foreach, use_reentrant, kind):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = network()

        def forward(self, x):
            return checkpoint(self.model, x, use_reentrant=use_reentrant)

    ours = moved(apply_orthogonal(Checkpointed(), orthogonal_map=kind, foreach=foreach))
    x = torch.randn(2, 6, requires_grad=True)
    ours(x).square().mean().backward()
    _, *expected = steps(ours.model, x)
    for mine, each in zip(ours.parameters(), expected, strict=True):
        torch.testing.assert_close(mine.grad, each)


@pytest.mark.parametrize("autocast_output", [False, True])
def test_autocast_computes_in_float32(autocast_output, kind):
    layer = orthogonal(nn.Linear(30, 20), orthogonal_map=kind, autocast_output=autocast_output)
    moved(layer)
    expected = layer.weight
    with torch.autocast("cpu", torch.bfloat16):
        weight = layer.weight
        layer(torch.randn(4, 30)).float().sum().backward()
    assert weight.dtype == (torch.bfloat16 if autocast_output else torch.float32)
    torch.testing.assert_close(weight, expected.to(weight.dtype))
    assert layer.parametrizations.weight.original.grad.dtype == torch.float32


def test_training_keeps_it_orthonormal(kind):
    """With weight decay, which takes the signs of torch's householder away."""
    model = apply_orthogonal(network(), orthogonal_map=kind, foreach=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.5)
    x, target = torch.randn(16, 6), torch.randn(16, 9)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for layer in model[::2]:
        assert_orthonormal(layer.weight)


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


def test_selection():
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    parametrizations.orthogonal(model[2])
    apply_orthogonal(model, exclude_names="3", orthogonal_map="cayley")
    assert isinstance(model[1].parametrizations.weight[0], OrthogonalParametrization)
    assert not hasattr(model[0], "parametrizations")
    apply_orthogonal(model, dim=0)
    assert_orthonormal(model[0].weight, 0)
    assert not isinstance(model[2].parametrizations.weight[0], OrthogonalParametrization)
    assert model[1].parametrizations.weight[0].orthogonal_map == "cayley"
    with pytest.warns(UserWarning, match="apply_orthogonal has normalized nothing"):
        apply_orthogonal(nn.ReLU())


def test_removal_leaves_the_weight():
    layer = moved(orthogonal(nn.Linear(4, 3)))
    expected = layer.weight.detach().clone()
    remove_orthogonal(layer)
    assert torch.equal(layer.weight, expected)
    assert layer.state_dict().keys() == nn.Linear(4, 3).state_dict().keys()
    stacked = spectral_norm(orthogonal(nn.Linear(4, 3)))
    expected = stacked.eval().weight.detach().clone()
    remove_orthogonal(stacked)
    torch.testing.assert_close(stacked.weight, expected)


def test_on_the_meta_device(kind):
    with torch.device("meta"):
        layer = orthogonal(nn.Linear(4, 3), orthogonal_map=kind)
    layer.to_empty(device="cpu")
    saved = moved(orthogonal(nn.Linear(4, 3), orthogonal_map=kind))
    layer.load_state_dict(saved.state_dict())
    torch.testing.assert_close(layer.weight, saved.weight)
