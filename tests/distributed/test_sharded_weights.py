"""A weight that is a DTensor is normalized as the whole weight is, shard by shard."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.testing import assert_close

from bench.communication import Communication
from snorm_triton import backend_report, remove_spectral_norm, spectral_norm
from snorm_triton.functional import spectral_normalize

ROUNDING = {"rtol": 1e-5, "atol": 1e-6}


def same_on_every_rank(*tensors):
    for tensor in tensors:
        gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, tensor.detach().contiguous())
        assert all(torch.equal(gathered[0], other) for other in gathered), tensor


def unit(*size, **options):
    return nn.functional.normalize(torch.randn(*size, **options), dim=0)


def channels_last(weight):
    return weight.to(memory_format=torch.channels_last)


# shape, dim, sharded dim, layout
WEIGHTS = {
    "linear rows": ((6, 4), 0, 0, torch.clone),
    "linear columns": ((6, 4), 0, 1, torch.clone),
    "linear rows uneven": ((5, 3), 0, 0, torch.clone),
    "linear columns uneven": ((4, 7), 0, 1, torch.clone),
    "linear rows on one rank alone": ((1, 3), 0, 0, torch.clone),
    "linear columns on one rank alone": ((3, 1), 0, 1, torch.clone),
    "transposed in memory": ((6, 4), 0, 1, lambda w: w.t().contiguous().t()),
    "conv outputs": ((5, 3, 2, 2), 0, 0, torch.clone),
    "conv inputs": ((5, 3, 2, 2), 0, 1, torch.clone),
    "conv channels_last inputs": ((5, 4, 3, 2), 0, 1, channels_last),
    "conv transposed outputs": ((5, 3, 2, 2), 1, 1, torch.clone),
    "conv transposed inputs": ((5, 3, 2, 2), 1, 0, torch.clone),
    "conv transposed channels_last": ((5, 4, 3, 2), 1, 1, channels_last),
    "conv kernel": ((4, 3, 5), 0, 2, torch.clone),
}


def as_the_whole(mesh_shape, placements, shape, dim, layout, iterations=1, dtype=torch.float32):
    mesh = init_device_mesh("cpu", mesh_shape)
    weight = layout(torch.randn(shape, dtype=dtype)).requires_grad_()
    sharded = distribute_tensor(weight.detach(), mesh, placements).requires_grad_()
    state = torch.promote_types(dtype, torch.float32)
    u = unit(shape[dim], dtype=state)
    v = unit(weight.numel() // shape[dim], dtype=state)
    options = {"dim": dim, "n_power_iterations": iterations}
    ours, whole = (spectral_normalize(w, u, v, **options) for w in (sharded, weight))
    assert isinstance(ours.weight_sn, DTensor)
    assert ours.weight_sn.placements == sharded.placements
    assert ours.weight_sn.dtype == dtype
    same_on_every_rank(ours.u, ours.v, ours.sigma)
    factor = torch.randn(shape, dtype=dtype)
    tolerance = {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.bfloat16 else ROUNDING
    for a, b in zip(ours[1:], whole[1:], strict=True):
        assert_close(a, b, **ROUNDING)
    assert_close(ours.weight_sn.full_tensor(), whole.weight_sn, **tolerance)
    for x, scale in (
        (ours.weight_sn, distribute_tensor(factor, mesh, placements)),
        (whole.weight_sn, factor),
    ):
        loss = (x * scale).abs().sum()
        (loss.full_tensor() if isinstance(loss, DTensor) else loss).backward(retain_graph=True)
    assert isinstance(sharded.grad, DTensor)
    assert sharded.grad.placements == sharded.placements
    assert_close(sharded.grad.full_tensor(), weight.grad, **tolerance)
    sharded.grad = weight.grad = None
    ours.sigma.abs().backward()
    whole.sigma.abs().backward()
    assert_close(sharded.grad.full_tensor(), weight.grad, **tolerance)


def all_as_the_whole(*iterations):
    ranks = dist.get_world_size()
    for name, (shape, dim, sharded_dim, layout) in WEIGHTS.items():
        for count in iterations:
            try:
                as_the_whole((ranks,), [Shard(sharded_dim)], shape, dim, layout, count)
            except Exception as error:
                error.add_note(f"{name}, {count} iterations")
                raise


def test_layouts_and_uneven_shards(two_ranks, four_ranks):
    two_ranks.run(all_as_the_whole, 0, 1, 3)
    four_ranks.run(all_as_the_whole, 1)


MESHES = {
    "replicated-and-rows": (Replicate(), Shard(0)),
    "columns-and-replicated": (Shard(1), Replicate()),
    "rows-and-columns": (Shard(0), Shard(1)),
    "rows-twice": (Shard(0), Shard(0)),
    "replicated": (Replicate(), Replicate()),
}


@pytest.mark.parametrize("placements", MESHES.values(), ids=MESHES)
def test_two_dimensional_meshes(four_ranks, placements):
    four_ranks.run(as_the_whole, (2, 2), placements, (7, 5), 0, torch.clone)


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float64, torch.complex64], ids=lambda d: str(d)[6:]
)
@pytest.mark.parametrize("sharded_dim", [0, 1])
def test_dtypes(two_ranks, dtype, sharded_dim):
    two_ranks.run(as_the_whole, (2,), [Shard(sharded_dim)], (6, 5), 0, torch.clone, 1, dtype)


def under_autocast():
    for shape, dim, sharded_dim, _ in WEIGHTS.values():
        weight = torch.randn(shape)
        sharded = distribute_tensor(weight, init_device_mesh("cpu", (2,)), [Shard(sharded_dim)])
        u, v = unit(shape[dim]), unit(weight.numel() // shape[dim])
        whole = spectral_normalize(weight, u, v, dim=dim)
        with torch.autocast("cpu", torch.bfloat16):
            ours = spectral_normalize(sharded, u, v, dim=dim)
        for a, b in zip(ours[1:], whole[1:], strict=True):
            assert_close(a, b, **ROUNDING)


def test_the_estimate_leaves_autocast(two_ranks):
    two_ranks.run(under_autocast)


def in_another_dtype():
    """As with autocast_output."""
    for shape, dim, sharded_dim, _ in WEIGHTS.values():
        whole = torch.randn(shape, requires_grad=True)
        mesh = init_device_mesh("cpu", (2,))
        sharded = distribute_tensor(whole.detach(), mesh, [Shard(sharded_dim)]).requires_grad_()
        u, v = unit(shape[dim]), unit(whole.numel() // shape[dim])
        for weight in (sharded, whole):
            weight_sn = spectral_normalize(weight, u, v, dim=dim, dtype=torch.bfloat16).weight_sn
            assert weight_sn.dtype == torch.bfloat16
            weight_sn.float().square().sum().backward()
        assert sharded.grad.dtype == torch.float32
        assert_close(sharded.grad.full_tensor(), whole.grad, rtol=2e-2, atol=2e-2)


def test_a_weight_in_another_dtype(two_ranks):
    two_ranks.run(in_another_dtype)


def a_layer(placement, layer=None):
    """A normalized layer whose weight is sharded, and the same with a whole weight."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    layer = nn.Linear(6, 5, bias=False) if layer is None else layer
    whole = spectral_norm(copy.deepcopy(layer))
    sharded = distribute_tensor(layer.weight.detach(), mesh, [placement])
    layer.register_parameter("weight", nn.Parameter(sharded))
    spectral_norm(layer)
    layer.parametrizations.weight[0].load_state_dict(whole.parametrizations.weight[0].state_dict())
    return layer, whole


def registered_with_unlike_seeds():
    mesh = init_device_mesh("cpu", (2, 2))
    layer = nn.Linear(6, 5)
    placements = [Replicate(), Shard(0)]
    layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), mesh, placements))
    torch.manual_seed(dist.get_rank())
    spectral_norm(layer)
    parametrization = layer.parametrizations.weight[0]
    state = parametrization.state_dict()
    assert list(map(type, state.values())) == [torch.Tensor, torch.Tensor]
    same_on_every_rank(*state.values(), parametrization.sigma)


def test_u_and_v_start_the_same_on_ranks_with_unlike_seeds(four_ranks):
    four_ranks.run(registered_with_unlike_seeds)


def zero_and_non_finite():
    for placement in (Shard(0), Shard(1)):
        layer, whole = a_layer(placement)
        state = {key: value.clone() for key, value in whole.state_dict().items()}
        for fill in (0, torch.nan):
            for each in (layer, whole):
                original = each.parametrizations.weight.original
                original.grad = None
                with torch.no_grad():
                    original.fill_(fill)
                each.weight.sum().backward()
            assert_close(layer.weight.full_tensor(), whole.weight, equal_nan=True)
            ours, theirs = (each.parametrizations.weight for each in (layer, whole))
            assert_close(ours.original.grad.full_tensor(), theirs.original.grad, equal_nan=True)
            for key in ("_u", "_v"):
                kept = state[f"parametrizations.weight.0.{key}"]
                assert torch.equal(getattr(ours[0], key), kept)


def test_zero_and_non_finite_weights(two_ranks):
    two_ranks.run(zero_and_non_finite)


def second_derivatives():
    for placement in (Shard(0), Shard(1)):
        results = []
        for each in a_layer(placement, nn.Linear(6, 5, bias=False).double()):
            each.eval()
            original = each.parametrizations.weight.original
            loss = total(each.weight.sin().sum())
            (grad,) = torch.autograd.grad(loss, original, create_graph=True)
            total((grad.square() * original).sum()).backward()
            results.append(total(original.grad))
        assert_close(*results)


def total(x):
    return x.full_tensor() if isinstance(x, DTensor) else x


def test_second_derivatives(two_ranks):
    two_ranks.run(second_derivatives)


def evaluation_writes_nothing_but_sigma():
    for placement in (Shard(0), Shard(1)):
        layer, whole = a_layer(placement)
        layer.eval(), whole.eval()
        before = copy.deepcopy(layer.state_dict())
        assert_close(layer.weight.full_tensor(), whole.weight)
        assert_close(layer.parametrizations.weight[0].sigma, whole.parametrizations.weight[0].sigma)
        for key, value in layer.state_dict().items():
            assert torch.equal(total(value), total(before[key]))


def test_evaluation(two_ranks):
    two_ranks.run(evaluation_writes_nothing_but_sigma)


def communication():
    sent = []
    for placement in (Shard(0), Shard(1)):
        layer, _ = a_layer(placement, nn.Conv2d(5, 7, 3, bias=False))
        with Communication() as forward:
            weight = layer.weight.to_local()
        with Communication() as backward:
            weight.sum().backward()
        sent.append((forward.calls, backward.calls))
    return sent


def test_no_weight_is_gathered(two_ranks):
    a_vector_for_each_product = [("allreduce", 4 * 7), ("allreduce", 4 * 5 * 9)]
    for forward, backward in two_ranks.run(communication)[0]:
        assert forward == a_vector_for_each_product
        assert backward == [("allreduce", 4)]


def removed():
    for leave_parametrized in (True, False):
        for placement in (Shard(0), Shard(1)):
            layer, whole = a_layer(placement)
            original = layer.parametrizations.weight.original
            for each in (layer, whole):
                remove_spectral_norm(each.eval(), leave_parametrized=leave_parametrized)
            assert layer.weight is original
            assert isinstance(layer.weight, DTensor)
            assert layer.weight.placements == (placement,)
            assert_close(layer.weight.full_tensor(), whole.weight)


def test_removal(two_ranks):
    two_ranks.run(removed)


def reported():
    layer, _ = a_layer(Shard(0))
    return backend_report(layer)[0]


def test_backend_report(two_ranks):
    report = two_ranks.run(reported)[0]
    assert report.backend == "torch"
    assert "sharded" in report.reason


def refused(make, message):
    mesh = init_device_mesh("cpu", (2,))
    layer = nn.Linear(6, 4)
    name, options = make(mesh, layer)
    with pytest.raises(ValueError, match=message):
        spectral_norm(layer, name, **options)
    assert not hasattr(layer, "parametrizations")


def a_partial_weight(mesh, layer):
    weight = DTensor.from_local(layer.weight.detach(), mesh, [Partial()])
    layer.register_parameter("weight", nn.Parameter(weight))
    return "weight", {}


def a_sharded_bias(mesh, layer):
    layer.register_parameter("bias", nn.Parameter(distribute_tensor(layer.bias.detach(), mesh)))
    return "bias", {}


def a_backend_by_name(mesh, layer):
    layer.register_parameter("weight", nn.Parameter(distribute_tensor(layer.weight.detach(), mesh)))
    return "weight", {"backend": "triton"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (a_partial_weight, "must be Shard or Replicate"),
        (a_sharded_bias, "a sharded 1-D parameter cannot be normalized"),
        (a_backend_by_name, "backend='triton' cannot run"),
    ],
)
def test_what_cannot_be_normalized(two_ranks, make, message):
    two_ranks.run(refused, make, message)
