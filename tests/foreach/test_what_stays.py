"""A model keeps no memory from one forward to the next that it would not keep without foreach."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.utils import prune

from snorm_triton import (
    apply_orthogonal,
    apply_spectral_norm,
    apply_weight_norm,
    remove_spectral_norm,
)
from snorm_triton.modules.standing import ATTRIBUTE
from snorm_triton.ops import autograd
from whole_models import Model, original_of

X = torch.randn(3, 6)
APPLY = [apply_spectral_norm, apply_weight_norm, apply_orthogonal]
each_constraint = pytest.mark.parametrize("apply", APPLY, ids=lambda apply: apply.__name__)


@torch.enable_grad()
def train(model, x=X):
    model.zero_grad()
    model(x).square().sum().backward()


@torch.no_grad()
def evaluate(model):
    """Twice: computed, then found."""
    model.eval()
    first, second = model(X), model(X)
    model.train()
    assert torch.equal(first, second)


def trained(apply=apply_spectral_norm, model=None):
    model = apply(model or Model(), foreach=True)
    for _ in range(3):
        train(model)
    return model


def ways_of(model):
    return [type(way).__name__ for way in model.__dict__[ATTRIBUTE].ways]


def memories(tensors):
    return [StorageWeakRef(tensor.untyped_storage()) for tensor in tensors]


def count(references):
    return sum(not each.expired() for each in references)


@each_constraint
@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.usefixtures("no_collection")
def test_what_a_forward_has_read(apply, foreach):
    model, read = apply(Model(), foreach=foreach), []
    for _ in range(3):
        train(model)
        model(X, lambda: read.extend(memories([model.first.weight, model.last.weight])))
    assert count(read) == 0
    model.last.weight.detach().mul_(2)  # which is noticed all the same
    with pytest.warns(UserWarning, match=r"last\.weight.* was changed in place"):
        train(model)


@each_constraint
@pytest.mark.usefixtures("no_collection")
def test_what_a_model_leaves_when_it_is_converted(apply):
    model = trained(apply)
    evaluate(model)
    before = memories([*model.parameters(), *model.buffers()])
    model.zero_grad()
    model.double()  # no forward has to follow
    assert count(before) == 0
    train(model, X.double())


@pytest.mark.usefixtures("no_collection")
def test_a_part_that_is_converted_in_its_forward_leaves_no_forward_running():
    model = trained()
    seen = []

    def convert():
        seen.append(weakref.ref(model.first.weight))
        model.last.double().float()

    model(X, convert)
    assert seen[0]() is None
    train(model)


@each_constraint
@pytest.mark.usefixtures("no_collection")
def test_graphs_that_lead_to_weights_of_one_call(apply):
    model, graphs = trained(apply), []
    for _ in range(5):
        root = torch.ones(100, requires_grad=True).exp()
        graphs += memories([root])
        weights = {name: p + root.sum() * 1e-9 for name, p in model.named_parameters()}
        functional_call(model, weights, (X,))
        del root, weights
    train(model)
    assert count(graphs) == 0
    assert ways_of(model)[-1:] == ways_of(trained(apply))[-1:]  # still those of its own weights


@pytest.mark.parametrize("apply", [apply_spectral_norm, apply_weight_norm])
@pytest.mark.usefixtures("no_collection")
def test_epochs_of_training_and_evaluation(apply):
    model, evaluated = trained(apply), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(6):
        train(model)
        assert count(evaluated) == 0
        optimizer.step()
        evaluate(model)
        model.eval()
        with torch.no_grad():
            evaluated = memories([model.first.weight, model.last.weight])
        model.train()
        assert count(evaluated) == 2
        assert sorted(ways_of(model)) == ["Recomputing", "Reusing"]


@pytest.mark.usefixtures("no_collection")
def test_a_change_of_what_was_evaluated_is_warned_of_in_training():
    model = trained()
    evaluate(model)
    with torch.no_grad():
        model.eval()
        model.last.weight.mul_(2)
    model.train()
    with pytest.warns(UserWarning, match=r"last\.weight.* was changed in place"):
        model(X)


@torch.no_grad()
def test_weights_evaluated_in_training_serve_without_gradients():
    model = trained(apply_weight_norm)
    evaluate(model)
    model.train()
    assert torch.equal(model(X), model(X))
    original = model.last.parametrizations.weight.original0
    before = model(X)
    original.mul_(2)
    assert not torch.equal(model(X), before)


@pytest.mark.parametrize("apply", [apply_spectral_norm, apply_weight_norm])
def test_a_graph_keeps_the_weights_of_its_own_node(apply, backend, monkeypatch):
    monkeypatch.setattr(autograd, "BUCKET_BYTES", 0)  # each weight has a node of its own
    model, kept = apply(Model(), foreach=True, backend=backend), []
    model.last.requires_grad_(False)
    for _ in range(3):
        model(X.to(model.first.bias), lambda layer=model.first: kept.append(layer.weight))
    before = memories([list(model.last.parametrizations.weight.parameters())[-1]])
    del model, kept[:-1]
    gc.collect()
    assert count(before) == 0
    kept[0].sum().backward()


def replace(model):
    model[1] = nn.Identity()


def remove(model):
    remove_spectral_norm(model[1])


def assign(model):
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def swap(model):
    original_of(model[1]).data = torch.randn(6, 6)


@pytest.mark.parametrize("change", [replace, remove, assign, swap])
def test_what_is_no_longer_of_the_model(change):
    model = trained(model=nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)))
    list_, parametrization = model[1].parametrizations.weight, model[1].parametrizations.weight[0]
    stays = weakref.ref(parametrization), change in (assign, swap)
    if change is remove:  # the weight itself goes on as a plain one
        before = memories([parametrization._u, parametrization._v])
    elif change is swap:
        before = memories([list_.original])
    else:
        before = memories([list_.original, parametrization._u, parametrization._v])
    del list_, parametrization
    change(model)
    train(model)
    gc.collect()
    assert count(before) == 0
    assert (stays[0]() is not None) == stays[1]


def test_nothing_stays_of_a_model_that_has_no_norms_any_more():
    model = trained(model=nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)))
    left = [weakref.ref(layer.parametrizations.weight[0]) for layer in model]
    for layer in model:
        remove_spectral_norm(layer)
    train(model)
    gc.collect()
    assert [each() for each in left] == [None, None]


@each_constraint
@torch.no_grad()
def test_models_of_inference_tensors(apply):
    with torch.inference_mode():
        whole = apply(Model(), foreach=True)
    whole.eval()
    outputs = [whole(X) for _ in range(4)]
    assert all(torch.equal(output, outputs[0]) for output in outputs)


@each_constraint
@torch.no_grad()
def test_inference_tensors_that_are_assigned(apply):
    model = trained(apply)
    with torch.inference_mode():
        assign(model)
    model.eval()
    outputs = [model(X) for _ in range(4)]
    assert all(torch.equal(output, outputs[0]) for output in outputs)


@pytest.mark.parametrize("apply", [apply_weight_norm, apply_orthogonal])
@torch.no_grad()
def test_inference_tensors_that_are_assigned_in_training(apply):
    model = trained(apply)
    with torch.inference_mode():
        assign(model)
    outputs = [model(X) for _ in range(4)]
    assert all(torch.equal(output, outputs[0]) for output in outputs)


@torch.no_grad()
def test_parameters_that_become_tensors_of_inference():
    model = trained(apply_weight_norm)
    evaluate(model)
    with torch.inference_mode():
        for parameter in model.parameters():
            parameter.data = parameter.clone().mul_(2)
    assert next(model.parameters()).is_inference()
    model.eval()
    assert torch.equal(model(X), copy.deepcopy(model)(X))


def replica_of(module, factor=1.0):
    """As DataParallel makes it, of parameters that are scaled."""
    replica = module._replicate_for_data_parallel()
    for name, parameter in module._parameters.items():
        setattr(replica, name, parameter * factor)
    for name, buffer in module._buffers.items():
        replica._buffers[name] = buffer.clone()
    for name, child in module._modules.items():
        replica._modules[name] = replica_of(child, factor)
    return replica


@pytest.mark.parametrize("foreach", [True, None])
@pytest.mark.parametrize("apply", [apply_spectral_norm, apply_weight_norm])
def test_replicas_of_data_parallel(apply, foreach):
    torch.manual_seed(0)
    model = apply(Model(), foreach=foreach)
    for _ in range(3):
        train(model)
    ways = list(model.__dict__[ATTRIBUTE].ways)
    replica = replica_of(model)
    for _ in range(2):
        output = replica(X)
    gradients = torch.autograd.grad(output.sum(), [*model.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert model.__dict__[ATTRIBUTE].ways == ways


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("apply", [apply_spectral_norm, apply_weight_norm])
@torch.no_grad()
def test_a_replica_reads_no_evaluation_of_its_original(apply, foreach):
    model = apply(Model(), foreach=foreach).eval()
    for _ in range(2):
        model(X)
    replica = replica_of(model, 2.0)
    changed = copy.deepcopy(model)
    for parameter in changed.parameters():
        parameter.mul_(2)
    assert replica.first.weight.data_ptr() != model.first.weight.data_ptr()
    assert torch.equal(replica(X), changed(X))


def test_a_pruned_original_is_iterated_on_once():
    together, apart = (
        apply_spectral_norm(nn.Sequential(nn.Linear(8, 8)), foreach=foreach)
        for foreach in (True, False)
    )
    apart.load_state_dict(together.state_dict())
    x = torch.randn(2, 8)
    for model in (together, apart):
        for _ in range(3):
            model(x).sum().backward()
        prune.l1_unstructured(model[0].parametrizations.weight, "original", amount=0.5)
    for _ in range(2):
        assert torch.equal(together(x), apart(x))
    norms = [model[0].parametrizations.weight[0] for model in (together, apart)]
    assert torch.equal(norms[0]._u, norms[1]._u)
