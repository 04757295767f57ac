"""Ours beside torch.nn.utils.parametrizations: the same numbers, the same checkpoints."""

import copy

import pytest
import torch
from torch.nn.utils import parametrizations

from snorm_triton import spectral_norm

TOLERANCE = 1e-5
STEPS = 20


def registered(norm, kind, **options):
    """The layer of ``kind`` with ``norm`` registered, from the same random draws whoever asks."""
    torch.manual_seed(3)
    return norm(kind.make(), kind.parameter, **options)


def state_of(module, kind):
    parametrization_list = module.parametrizations[kind.parameter]
    return {
        "original": parametrization_list.original.detach(),
        "u": parametrization_list[0]._u,
        "v": parametrization_list[0]._v,
    }


def train(module, kind):
    """``STEPS`` of SGD: per step the weight as used, the gradient, u, v and the loss."""
    torch.manual_seed(4)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    history = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        output = kind.run(module, kind.inputs())
        (output.square().mean() - output.mean()).backward()
        grad = module.parametrizations[kind.parameter].original.grad.clone()
        optimizer.step()
        state = {name: value.clone() for name, value in state_of(module, kind).items()}
        history.append({**state, "grad": grad, "output": output.detach()})
    return history


def compare_training(ours, theirs, kind, backend, relative_error, report_line, *errors):
    """Train both, compare every step and then evaluation, and print the largest relative errors."""
    worst = dict.fromkeys(("original", "grad", "u", "v", "output"), 0.0)
    for our_step, their_step in zip(train(ours, kind), train(theirs, kind), strict=True):
        for key in worst:
            worst[key] = max(worst[key], relative_error(our_step[key], their_step[key]))
    inputs = kind.inputs()
    ours.eval(), theirs.eval()
    with torch.no_grad():
        outputs = [kind.run(module, inputs) for module in (ours, theirs)]
        weights = [getattr(module, kind.parameter) for module in (ours, theirs)]
    worst["eval output"], worst["eval weight"] = relative_error(*outputs), relative_error(*weights)
    report_line(
        f"Parity with torch over {STEPS} SGD steps, largest relative errors, backend {backend}",
        f"{kind.name:34} " + "  ".join(f"{key} {error:.0e}" for key, error in worst.items()),
    )
    assert max(*worst.values(), *errors) < TOLERANCE, worst


def test_twenty_training_steps_match_torch(layer_kind, backend, relative_error, report_line):
    ours = registered(spectral_norm, layer_kind, backend=backend)
    theirs = registered(parametrizations.spectral_norm, layer_kind)
    compare_training(ours, theirs, layer_kind, backend, relative_error, report_line)


def test_the_first_access_matches_torch(layer_kind, backend, relative_error):
    ours = registered(spectral_norm, layer_kind, backend=backend)
    theirs = registered(parametrizations.spectral_norm, layer_kind)
    weights = [getattr(module, layer_kind.parameter) for module in (ours, theirs)]
    assert relative_error(*weights) < 1e-6


def test_lazy_layers_match_torch_on_materialized_ones(
    lazy_kind, backend, relative_error, report_line
):
    """torch refuses lazy modules, so its layer is registered once the parameters are there."""
    inputs = lazy_kind.inputs()
    torch.manual_seed(5)
    ours = spectral_norm(lazy_kind.make(), backend=backend)
    first_output = ours(*inputs)
    torch.manual_seed(5)
    theirs = lazy_kind.make()
    theirs(*inputs)
    parametrizations.spectral_norm(theirs)
    first_error = relative_error(first_output, theirs(*inputs))
    compare_training(ours, theirs, lazy_kind, backend, relative_error, report_line, first_error)


def test_state_dicts_load_into_each_other(layer_kind, relative_error):
    ours = registered(spectral_norm, layer_kind)
    theirs = registered(parametrizations.spectral_norm, layer_kind)
    train(ours, layer_kind)
    assert list(ours.state_dict()) == list(theirs.state_dict())

    theirs.load_state_dict(ours.state_dict(), strict=True)
    again = registered(spectral_norm, layer_kind)
    again.load_state_dict(theirs.state_dict(), strict=True)
    for key, value in ours.state_dict().items():
        assert torch.equal(theirs.state_dict()[key], value)
        assert torch.equal(again.state_dict()[key], value)
    ours.eval(), theirs.eval()
    weights = [getattr(module, layer_kind.parameter) for module in (ours, theirs)]
    assert relative_error(*weights) < 1e-6


@pytest.mark.parametrize("n_power_iterations", [1, 3])
def test_options_mean_what_they_mean_in_torch(n_power_iterations, backend, relative_error):
    weights = []
    for norm, options in (
        (spectral_norm, {"backend": backend}),
        (parametrizations.spectral_norm, {}),
    ):
        torch.manual_seed(6)
        layer = torch.nn.Conv2d(3, 4, (2, 3))
        norm(layer, "weight", n_power_iterations, 1e-6, 2, **options)
        weights.append(layer.weight)
    assert relative_error(*weights) < 1e-6


def test_one_dimensional_parameters_match_torch(relative_error):
    ours, theirs = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    spectral_norm(ours, "bias")
    parametrizations.spectral_norm(theirs, "bias")
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for layer in (ours, theirs):
        (layer.bias * torch.arange(3.0)).sum().backward()
    assert relative_error(ours.bias, theirs.bias) < 1e-6
    grads = [layer.parametrizations.bias.original.grad for layer in (ours, theirs)]
    assert relative_error(*grads) < 1e-6


def test_a_sparse_embedding_matches_torch(backend, relative_error):
    grads = []
    for norm, options in (
        (spectral_norm, {"backend": backend}),
        (parametrizations.spectral_norm, {}),
    ):
        torch.manual_seed(9)
        layer = norm(torch.nn.Embedding(7, 4, sparse=True), **options)
        layer(torch.tensor([1, 2, 2])).square().sum().backward()
        grads.append(layer.parametrizations.weight.original.grad)
    assert relative_error(*grads) < 1e-6


def test_stacking_matches_torch(backend, relative_error):
    torch.manual_seed(7)
    ours = torch.nn.Linear(4, 3)
    theirs = copy.deepcopy(ours)
    for layer, norm, options in (
        (ours, spectral_norm, {"backend": backend}),
        (theirs, parametrizations.spectral_norm, {}),
    ):
        torch.manual_seed(8)
        norm(norm(layer, **options), **options)
    assert relative_error(ours.weight, theirs.weight) < 1e-6
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_both_agree_in_float64_beyond_float32(layer_kind, relative_error):
    torch.manual_seed(9)
    ours = layer_kind.make().double()
    theirs = copy.deepcopy(ours)
    for layer, norm in ((ours, spectral_norm), (theirs, parametrizations.spectral_norm)):
        torch.manual_seed(10)
        norm(layer, layer_kind.parameter)
    weights = [getattr(module, layer_kind.parameter) for module in (ours, theirs)]
    assert weights[0].dtype == torch.float64
    assert relative_error(*weights) < 1e-13
