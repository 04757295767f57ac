"""refresh_spectral_norm and reset_parameters: u, v and sigma from the weights as they are."""

import copy

import pytest
import torch
import torch.utils.checkpoint
from torch import nn

from snorm_triton import apply_spectral_norm, refresh_spectral_norm, sigmas, spectral_norm
from snorm_triton.reference import largest_singular_value


def state_of(layer, name="weight"):
    return layer.parametrizations[name][0]


def original_of(layer, name="weight"):
    return layer.parametrizations[name].original


def test_every_kind_of_layer(layer_kind):
    name = layer_kind.parameter
    layer = spectral_norm(layer_kind.make(), name).eval()
    original = original_of(layer, name)
    nn.init.normal_(original, std=3)
    refresh_spectral_norm(layer, n_power_iterations=200)
    expected = largest_singular_value(original, state_of(layer, name).dim)
    assert sigmas(layer)[name].item() == pytest.approx(expected.item(), rel=1e-3)
    torch.testing.assert_close(getattr(layer, name), original / sigmas(layer)[name])


DTYPES = [torch.float16, torch.bfloat16, torch.float64, torch.complex64]


@pytest.mark.parametrize("stable_fp32", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(dtype, stable_fp32):
    layer = spectral_norm(nn.Linear(6, 4, dtype=dtype), stable_fp32=stable_fp32).eval()
    dtypes = [buffer.dtype for buffer in layer.buffers()]
    with torch.no_grad():
        original_of(layer).mul_(5)
    refresh_spectral_norm(layer, 50)
    assert [buffer.dtype for buffer in layer.buffers()] == dtypes
    wide = torch.complex128 if dtype.is_complex else torch.float64
    norm = torch.linalg.matrix_norm(layer.weight.to(wide), 2).item()
    assert norm == pytest.approx(1, abs=0.02 if dtype.itemsize == 2 else 1e-5)


def test_one_dimension():
    layer = spectral_norm(nn.Linear(6, 4), "bias")
    nn.init.constant_(original_of(layer, "bias"), 2)
    refresh_spectral_norm(layer)
    assert sigmas(layer)["bias"].item() == pytest.approx(4)


def test_stacked_normalizations_each_from_the_one_before():
    layer = spectral_norm(spectral_norm(nn.Linear(6, 4)))
    with torch.no_grad():
        original_of(layer).mul_(7)
    refresh_spectral_norm(layer, 100)
    raw = torch.linalg.matrix_norm(original_of(layer), 2).item()
    found = sigmas(layer)
    assert found["weight.0"].item() == pytest.approx(raw, rel=1e-4)
    assert found["weight.1"].item() == pytest.approx(1, rel=1e-4)


def test_it_starts_from_u_and_v_where_they_are_good():
    layer = spectral_norm(nn.Linear(60, 40))
    for _ in range(200):
        layer.weight  # noqa: B018
    expected = copy.deepcopy(state_of(layer)._buffers)
    generator = torch.get_rng_state()
    refresh_spectral_norm(layer, n_power_iterations=1)
    assert torch.equal(torch.get_rng_state(), generator)
    for name, buffer in state_of(layer)._buffers.items():
        torch.testing.assert_close(buffer, expected[name])
    state_of(layer)._u.mul_(0.22)  # an average of unit vectors
    refresh_spectral_norm(layer, n_power_iterations=1)
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("bad", [0.0, 1e-20, 1e20, torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["_u", "_v"])
def test_it_starts_anew_where_they_are_not(bad, name):
    layer = spectral_norm(nn.Linear(6, 4)).eval()
    getattr(state_of(layer), name).fill_(bad)
    refresh_spectral_norm(layer, 100)
    assert torch.linalg.matrix_norm(layer.weight, 2).item() == pytest.approx(1, abs=1e-4)


def test_a_zero_weight_leaves_vectors_that_can_go_on():
    layer = spectral_norm(nn.Linear(6, 4))
    nn.init.zeros_(original_of(layer))
    for buffer in layer.buffers():
        buffer.zero_()
    refresh_spectral_norm(layer)
    assert sigmas(layer)["weight"] == 0
    nn.init.normal_(original_of(layer))
    for _ in range(50):
        weight = layer.weight
    assert torch.linalg.matrix_norm(weight, 2).item() == pytest.approx(1, abs=1e-3)


def test_it_is_no_access():
    layer = spectral_norm(nn.Linear(6, 4))
    calls = []
    handle = state_of(layer).register_forward_hook(lambda *args: calls.append(args))
    refresh_spectral_norm(layer)
    handle.remove()
    assert not calls
    assert layer.training
    assert state_of(layer).training


def test_deferred_parameters_are_left_for_their_first_forward():
    model = nn.Sequential(spectral_norm(nn.LazyLinear(3)), spectral_norm(nn.Linear(3, 2)))
    refresh_spectral_norm(model)
    assert [sigma.isfinite() for sigma in sigmas(model).values()] == [False, True]


def test_bad_input():
    model = nn.Sequential(spectral_norm(nn.Linear(3, 2)), spectral_norm(nn.Linear(2, 2)))
    model[1].to("meta")
    state = copy.deepcopy(dict(model[0].named_buffers()))
    with pytest.raises(ValueError, match=r"'1\.weight' is on the meta device"):
        refresh_spectral_norm(model)
    with pytest.raises(ValueError, match="n_power_iterations must be an integer of at least 1"):
        refresh_spectral_norm(model, 0)
    for name, buffer in model[0].named_buffers():
        assert torch.equal(buffer, state[name])
    with pytest.raises(ValueError, match="no spectral norm of snorm_triton is registered in Linea"):
        refresh_spectral_norm(nn.Linear(3, 2))
    with pytest.raises(TypeError, match="model must be a"):
        refresh_spectral_norm(model.state_dict())


def test_reset_parameters_draws_and_the_next_access_iterates():
    layer = spectral_norm(nn.Linear(6, 4)).eval()
    expected = torch.linalg.matrix_norm(original_of(layer), 2).item()
    state = state_of(layer)
    before, address = state._u.clone(), state._u.data_ptr()
    state.reset_parameters()
    assert state._u.data_ptr() == address
    assert not torch.equal(state._u, before)
    for vector in (state._u, state._v):
        assert vector.norm().item() == pytest.approx(1, abs=1e-6)
    assert state.sigma.isnan()
    assert torch.linalg.matrix_norm(layer.weight, 2).item() == pytest.approx(1, rel=0.01)
    assert state.sigma.item() == pytest.approx(expected, rel=0.01)
    after = state._u.clone()
    layer.weight  # noqa: B018
    assert torch.equal(state._u, after)


def test_a_module_that_replaces_its_parameters_in_reset_parameters():
    class Replacing(nn.Linear):
        def reset_parameters(self):
            self.weight = nn.Parameter(torch.full((4, 6), 2.0))

    layer = spectral_norm(Replacing(6, 4, bias=False))
    original = original_of(layer)
    nn.init.zeros_(original)
    layer.reset_parameters()
    assert original_of(layer) is original
    assert (original == 2).all()
    assert list(layer.state_dict()) == list(spectral_norm(Replacing(6, 4, bias=False)).state_dict())


def test_a_reset_that_fails_leaves_the_module_normalized():
    class Failing(nn.Linear):
        fails = False

        def reset_parameters(self):
            if self.fails:
                raise RuntimeError("no")
            super().reset_parameters()

    layer = spectral_norm(Failing(6, 4)).eval()
    layer.fails = True
    before = layer.weight
    with pytest.raises(RuntimeError, match="no"):
        layer.reset_parameters()
    assert torch.equal(layer.weight, before)


def model_on(device):
    with torch.device(device):
        model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(3, 2))
        return spectral_norm(apply_spectral_norm(model)[2], "bias") and model


def test_a_checkpoint_assigned_to_a_model_on_the_meta_device():
    trained, model = model_on("cpu"), model_on("meta")
    for _ in range(3):
        trained(torch.randn(2, 2, 2, 2))
    model.load_state_dict(trained.state_dict(), assign=True)
    x = torch.randn(2, 2, 2, 2)
    assert torch.equal(model.eval()(x), trained.eval()(x))
    for name, sigma in sigmas(model).items():
        assert torch.equal(sigma, sigmas(trained)[name])


def test_a_checkpoint_loaded_after_to_empty_is_not_iterated_on():
    trained, model = model_on("cpu"), model_on("meta").to_empty(device="cpu")
    model.load_state_dict(trained.state_dict())
    x = torch.randn(2, 2, 2, 2)
    assert torch.equal(model(x), trained(x))  # in training: as many iterations here as there
    for name, value in trained.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


def test_what_iterates_once_for_each_update_is_due_after_a_reset():
    layer = spectral_norm(nn.Linear(6, 4), power_iter="update")
    layer.weight  # noqa: B018
    refresh_spectral_norm(layer, 100)
    u = state_of(layer)._u.clone()
    layer.weight  # noqa: B018
    assert torch.equal(state_of(layer)._u, u)
    state_of(layer).reset_parameters()
    assert torch.linalg.matrix_norm(layer.weight, 2).item() == pytest.approx(1, rel=0.01)
    moved = layer.to("meta").to_empty(device="cpu")
    nn.init.normal_(original_of(moved))
    assert torch.linalg.matrix_norm(moved.weight, 2).item() == pytest.approx(1, rel=0.05)


def test_a_checkpointed_forward_is_recomputed_as_it_was_before_a_refresh():
    layer = spectral_norm(nn.Linear(6, 4))
    twin = copy.deepcopy(layer)
    x = torch.randn(2, 6, requires_grad=True)
    output = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
    nn.init.normal_(layer.parametrizations.weight[0]._u)
    refresh_spectral_norm(layer)
    (gradient,) = torch.autograd.grad(output.sum(), x)
    assert torch.equal(gradient, torch.autograd.grad(twin(x).sum(), x)[0])
