"""FSDP2: normalize, then shard. Training, state dicts and accesses are those of the whole model."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel
from torch.testing import assert_close

from snorm_triton import apply_spectral_norm, remove_spectral_norm, sigmas, spectral_norm
from snorm_triton.distributed import parallelize_module

ROUNDING = {"rtol": 1e-5, "atol": 1e-6}


def model():
    """Sizes that no number of ranks divides."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 5, 3),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(5, 3, 3), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(12, 7),
        nn.ReLU(),
        nn.Linear(7, 1),
    )


def images(n=4):
    return torch.randn(n, 2, 6, 6)


def sharded(whole, **options):
    """A copy, its inner block a group of its own below the root."""
    twin = copy.deepcopy(whole)
    for module in (twin[2], twin):
        fully_shard(module, **options)
    return twin


def plain(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assert_same_state(parallel, whole):
    ours, theirs = parallel.state_dict(), whole.state_dict()
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert_close(plain(value), theirs[key], **ROUNDING, msg=lambda m, key=key: f"{key}: {m}")


def train(parallel, whole, steps=3):
    optimizers = [torch.optim.Adam(each.parameters(), lr=1e-2) for each in (parallel, whole)]
    rank, ranks = dist.get_rank(), dist.get_world_size()
    for _ in range(steps):
        real, fake = images(2 * ranks), images(2 * ranks)
        mine = slice(2 * rank, 2 * rank + 2)
        losses = [
            each(real[part]).mean() - each(fake[part]).square().mean()
            for each, part in ((parallel, mine), (whole, slice(None)))
        ]
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return parallel


def trains_as_the_whole(foreach, reshard, power_iter):
    whole = apply_spectral_norm(model(), foreach=foreach, power_iter=power_iter)
    parallel = sharded(whole, reshard_after_forward=reshard)
    whole = copy.deepcopy(whole)  # a copy's weights are new to it, to policy "update" a change
    originals = [key for key in parallel.state_dict() if key.endswith("original")]
    assert all(isinstance(parallel.state_dict()[key], DTensor) for key in originals)
    train(parallel, whole)
    assert_same_state(parallel, whole)
    for key, sigma in sigmas(parallel).items():
        assert_close(sigma, sigmas(whole)[key], **ROUNDING)


@pytest.mark.parametrize("reshard", [True, False])
@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("power_iter", ["access", "update"])
def test_training(two_ranks, foreach, reshard, power_iter):
    two_ranks.run(trains_as_the_whole, foreach, reshard, power_iter)


def iterates_once_a_step():
    """Though FSDP2 gathers a weight at each forward in memory of its own."""
    layer = nn.Linear(6, 4)
    parallel = fully_shard(spectral_norm(layer, power_iter="update"))
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1)
    u, kept = layer.parametrizations.weight[0]._u, []
    for _ in range(2):
        before = u._version  # which a write of it advances
        for _ in range(3):
            parallel(torch.randn(3, 6)).sum().backward()
            kept.append(torch.empty(24))  # where the weight was
            _ = parallel.weight
        assert u._version == before + 1
        optimizer.step()


def test_one_iteration_a_step(two_ranks):
    two_ranks.run(iterates_once_a_step)


def compiled():
    whole = apply_spectral_norm(model())
    parallel = sharded(whole)
    train(torch.compile(parallel, backend="aot_eager"), whole)
    assert_same_state(parallel, whole)


def test_compiled(two_ranks):
    two_ranks.run(compiled)


def trains_on_a_mesh_with_replicas():
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    whole = apply_spectral_norm(model())
    parallel = sharded(whole, mesh=mesh)
    train(parallel, whole)
    assert_same_state(parallel, whole)
    assert_close(parallel[4].weight.full_tensor(), whole[4].weight, **ROUNDING)


def test_hybrid_sharding(four_ranks):
    four_ranks.run(trains_on_a_mesh_with_replicas)


def from_meta():
    whole = apply_spectral_norm(model())
    with torch.device("meta"):
        parallel = sharded(apply_spectral_norm(model()))
    parallel.to_empty(device="cpu")
    loads_whole(parallel, whole.state_dict())
    train(parallel, whole)
    assert_same_state(parallel, whole)


def loads_whole(parallel, state):
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    given = copy.deepcopy(state) if dist.get_rank() == 0 else {}
    set_model_state_dict(parallel, given, options=options)


def test_a_model_made_on_meta(two_ranks):
    two_ranks.run(from_meta)


def mixed_precision():
    whole = apply_spectral_norm(model())
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    parallel = sharded(whole, mp_policy=policy)
    assert parallel(images()).dtype == torch.bfloat16
    train(parallel, copy.deepcopy(whole))
    for key, value in parallel.state_dict().items():
        assert value.dtype == torch.float32, key
    for key, value in sigmas(parallel).items():
        assert value.dtype == torch.float32, key
        # A weight in bfloat16 has its own sigma, 2^-9 away at most.
        weight = plain(
            parallel.state_dict()[key.replace("weight", "parametrizations.weight.original")]
        )
        assert_close(value, torch.linalg.matrix_norm(weight.flatten(1), 2), rtol=0.1, atol=0)


def test_mixed_precision_keeps_u_and_v(two_ranks):
    two_ranks.run(mixed_precision)


def access_outside_forward():
    whole = apply_spectral_norm(model())
    parallel = sharded(whole)
    for _ in range(2):
        ours, theirs = parallel[4].weight, whole[4].weight
        assert isinstance(ours, DTensor)
        assert_close(ours.full_tensor(), theirs, **ROUNDING)
        ours.square().sum().backward()
        theirs.square().sum().backward()
    originals = [each[4].parametrizations.weight.original for each in (parallel, whole)]
    assert_close(originals[0].grad.full_tensor(), originals[1].grad, **ROUNDING)
    assert_same_state(parallel, whole)
    train(parallel, whole, steps=1)
    assert_same_state(parallel, whole)


def test_access_outside_forward(two_ranks):
    two_ranks.run(access_outside_forward)


def normalized_after():
    module = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    fully_shard(module)
    before = list(module[0]._parameters)
    for normalize in (spectral_norm, apply_spectral_norm):
        with pytest.raises(ValueError, match="normalize the model first, then call fully_shard"):
            normalize(module[0])
    assert list(module[0]._parameters) == before
    module(torch.randn(3, 4)).sum().backward()


def test_normalizing_after_fully_shard(two_ranks):
    two_ranks.run(normalized_after)


def removed_after():
    parallel = sharded(apply_spectral_norm(model()))
    before = {key: plain(value).clone() for key, value in parallel.state_dict().items()}
    mesh = init_device_mesh("cpu", (2,))
    for take_off in (
        lambda: remove_spectral_norm(parallel[4]),
        lambda: remove_spectral_norm(parallel, recursive=True),
        lambda: parallelize_module(parallel, mesh, {"4": ColwiseParallel()}),
    ):
        with pytest.raises(ValueError, match="load its full state dict into a model that is not"):
            take_off()
    for key, value in parallel.state_dict().items():
        assert torch.equal(plain(value), before[key])
    parallel(images()).sum().backward()


def test_removal_from_a_sharded_model(two_ranks):
    two_ranks.run(removed_after)


class Below(nn.Module):
    """A model that is a group of its own below the root, and takes a gradient further down."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 2, 1)
        self.model = apply_spectral_norm(model(), foreach=True)

    def forward(self, x):
        return self.model(self.first(x))


def below_the_root():
    whole = Below()
    parallel = copy.deepcopy(whole)
    for module in (parallel.model, parallel):
        fully_shard(module)
    train(parallel, whole)
    assert_same_state(parallel, whole)


def test_a_model_prepared_as_a_whole_below_the_root(two_ranks):
    two_ranks.run(below_the_root)


def saved(path):
    whole = apply_spectral_norm(model())
    parallel = train(sharded(whole), whole)
    dcp.save(get_model_state_dict(parallel), checkpoint_id=path)
    full = get_model_state_dict(parallel, options=StateDictOptions(full_state_dict=True))
    if dist.get_rank() == 0:
        assert full.keys() == whole.state_dict().keys()
    return {key: value.clone() for key, value in whole.state_dict().items()}


def loaded_sharded(path, expected):
    torch.manual_seed(1)
    parallel = sharded(apply_spectral_norm(model().apply(perturb)))
    state = get_model_state_dict(parallel)
    dcp.load(state, checkpoint_id=path)
    set_model_state_dict(parallel, state)
    for key, value in parallel.state_dict().items():
        assert_close(plain(value), expected[key], **ROUNDING)
    parallel.eval()
    twin = apply_spectral_norm(model())
    twin.load_state_dict(expected)
    torch.manual_seed(2)
    x = images()
    assert_close(parallel(x), twin.eval()(x), **ROUNDING)


def perturb(module):
    if hasattr(module, "weight"):
        nn.init.normal_(module.weight)


def loaded_from_full(expected):
    parallel = sharded(apply_spectral_norm(model().apply(perturb)))
    loads_whole(parallel, expected)
    for key, value in parallel.state_dict().items():
        assert torch.equal(plain(value), expected[key])


@pytest.fixture(scope="module")
def checkpoint(two_ranks, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("checkpoint"))
    return path, two_ranks.run(saved, path)[0]


def test_a_checkpoint_of_two_ranks_loads_on_two(two_ranks, checkpoint):
    two_ranks.run(loaded_sharded, *checkpoint)


def test_a_checkpoint_of_two_ranks_loads_on_four(four_ranks, checkpoint):
    four_ranks.run(loaded_sharded, *checkpoint)


# It warns that it takes no part in a process group.
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_a_checkpoint_of_two_ranks_loads_on_one(checkpoint):
    path, expected = checkpoint
    whole = apply_spectral_norm(model().apply(perturb))
    state = whole.state_dict()
    dcp.load(state, checkpoint_id=path, no_dist=True)
    whole.load_state_dict(state)
    for key, value in whole.state_dict().items():
        assert_close(value, expected[key], **ROUNDING)


def test_a_whole_checkpoint_loads_on_two(two_ranks, checkpoint):
    two_ranks.run(loaded_from_full, checkpoint[1])


def on_a_mesh_of_both():
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    torch.manual_seed(0)
    whole = apply_spectral_norm(
        nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4), nn.Tanh())
    )
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    parallel = parallelize_module(copy.deepcopy(whole), mesh["tp"], plan)
    fully_shard(parallel, mesh=mesh["dp"])
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (parallel, whole)]
    for _ in range(3):
        x = torch.randn(4, 6)
        rank = mesh["dp"].get_local_rank()
        for each, part in ((parallel, x[2 * rank : 2 * rank + 2]), (whole, x)):
            each(part).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert_same_state(parallel, whole)
    with pytest.raises(ValueError, match="access the weight inside forward"):
        _ = parallel[0].weight  # its rows are sharded twice, in an order of their own
    assert_close(parallel[2].weight.full_tensor(), whole[2].weight, **ROUNDING)


def test_with_tensor_parallel(four_ranks):
    four_ranks.run(on_a_mesh_of_both)
