"""Copies, files and processes."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import multiprocessing, nn
from torch.nn.utils import parameters_to_vector, parametrize, vector_to_parameters


def model_of(sn):
    return sn.apply(nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(12, 4)))


def images():
    return torch.randn(5, 2, 3, 3)


@pytest.mark.promise(
    "`copy.deepcopy` of a model, after a forward in training",
    hook=("refused", RuntimeError),
)
def test_deepcopy(sn):
    model, x = model_of(sn), images()
    model(x).sum().backward()
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), model(x))
    addresses = {value.data_ptr() for value in model.state_dict().values()}
    assert not addresses & {value.data_ptr() for value in twin.state_dict().values()}


@pytest.mark.promise(
    "Removing the normalization from a deepcopy",
    parametrization=("the original has no weight any more", AttributeError),
)
def test_removal_from_a_deepcopy(sn):
    layer = sn.spectral_norm(nn.Linear(4, 3)).eval()
    twin = copy.deepcopy(layer)
    expected = sn.weight(layer).detach().clone()
    assert torch.equal(sn.remove(twin, "weight").weight, expected)
    assert torch.equal(sn.weight(layer), expected)


@pytest.mark.promise(
    "A deepcopy's weight under `parametrize.cached()`",
    hook="nothing is cached",
    parametrization=("it is the original's", AssertionError),
)
def test_deepcopy_cached(sn):
    layer = sn.spectral_norm(nn.Linear(4, 3)).eval()
    twin = copy.deepcopy(layer)
    nn.init.normal_(sn.original(twin))
    with parametrize.cached():
        assert not torch.equal(sn.weight(layer), sn.weight(twin))
        assert sn.weight(layer) is sn.weight(layer)


@pytest.mark.promise(
    "`copy.copy`, which shares the parameters", parametrization=("refused", RuntimeError)
)
def test_shallow_copy(sn):
    layer = sn.spectral_norm(nn.Linear(4, 3)).eval()
    twin = copy.copy(layer)
    assert sn.original(twin) is sn.original(layer)
    assert torch.equal(sn.weight(twin), sn.weight(layer))


def through_a_file(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "duplicate", [through_a_file, lambda m: pickle.loads(pickle.dumps(m))], ids=["save", "pickle"]
)
@pytest.mark.promise(
    "`torch.save`, `torch.load` and pickle of a whole module",
    parametrization=("refused", RuntimeError),
)
def test_whole_module_in_a_file(sn, duplicate):
    model, x = model_of(sn), images()
    model(x)
    twin = duplicate(model)
    assert torch.equal(twin(x), model(x))
    for name, value in model.state_dict().items():
        assert torch.equal(twin.state_dict()[name], value)
    sn.remove(twin[2], "weight")
    model(x)


@pytest.fixture(scope="module")
def spawned():
    """A pool of one process, whose start takes seconds."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        yield pool


@pytest.mark.promise(
    "A module sent to a spawned process", parametrization=("refused", RuntimeError)
)
def test_spawned_process(sn, spawned):
    model, x = model_of(sn).eval().requires_grad_(False), images()
    assert torch.equal(spawned.apply(nn.Module.__call__, (model, x)), model(x))


@pytest.mark.promise("`share_memory()`: processes see one model's weights, u and v")
def test_shared_memory(sn):
    model = model_of(sn).share_memory()
    assert all(value.is_shared() for value in model.state_dict().values())
    # From where every buffer moves: a u of one entry, or one that has converged, may stay.
    for buffer in model.buffers():
        if buffer.ndim == 1:
            F.normalize(torch.randn_like(buffer), dim=0, out=buffer)
        else:
            buffer.zero_()
    before = {name: value.clone() for name, value in model.named_buffers()}
    model(images())
    assert all(buffer.is_shared() for buffer in model.buffers())
    assert not any(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


@pytest.mark.promise("`parameters_to_vector` and `vector_to_parameters`")
def test_parameters_to_vector(sn):
    model, twin, x = model_of(sn), model_of(sn), images()
    vector_to_parameters(parameters_to_vector(model.parameters()), twin.parameters())
    for ours, theirs in zip(twin.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for _ in range(100):
        model(x), twin(x)
    torch.testing.assert_close(twin.eval()(x), model.eval()(x), rtol=1e-3, atol=1e-3)
