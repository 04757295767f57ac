"""On many devices."""

import copy
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.distributed.tensor.parallel as torch_parallel
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations
from torch.testing import assert_close

import snorm_triton
from snorm_triton.distributed import parallelize_module

ROUNDING = {"rtol": 1e-5, "atol": 1e-6}
# Of each spectral norm's name, by which a rank knows it.
NORMALIZE = {
    "hook": nn.utils.spectral_norm,
    "parametrization": parametrizations.spectral_norm,
    "ours": snorm_triton.spectral_norm,
}


def normalize(name, layer):
    with warnings.catch_warnings():
        # Of torch's, which draws u and v as DTensors.
        warnings.filterwarnings("ignore", "DTensor random operators may not have", UserWarning)
        return NORMALIZE[name](layer)


def model(name):
    """Alike on every rank."""
    torch.manual_seed(0)
    return nn.Sequential(
        normalize(name, nn.Linear(6, 8)), nn.ReLU(), normalize(name, nn.Linear(8, 2))
    )


def train(parallel, whole, steps=2):
    """Two forwards before a backward: of a rank's part of the batch, and of the whole of it."""
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (parallel, whole)]
    rank, ranks = dist.get_rank(), dist.get_world_size()
    for _ in range(steps):
        real, fake = torch.randn(2, 2 * ranks, 6)
        for each, part in ((parallel, slice(2 * rank, 2 * rank + 2)), (whole, slice(None))):
            (each(real[part]).mean() - each(fake[part]).square().mean()).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def assert_same_state(parallel, whole):
    ours, theirs = parallel.state_dict(), whole.state_dict()
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        value = value.full_tensor() if isinstance(value, DTensor) else value
        assert_close(value, theirs[key], **ROUNDING)


def ddp(name, broadcast_buffers, compiled):
    whole = model(name)
    replica = copy.deepcopy(whole)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        parallel = DistributedDataParallel(replica, broadcast_buffers=broadcast_buffers)
    train(torch.compile(parallel, backend="aot_eager") if compiled else parallel, whole)
    assert_same_state(replica, whole)


@pytest.mark.promise("DistributedDataParallel, D(real) and D(fake) before one backward")
@pytest.mark.parametrize("broadcast_buffers", [True, False])
def test_ddp(sn, two_ranks, broadcast_buffers):
    two_ranks.run(ddp, sn.name, broadcast_buffers, False)


@pytest.mark.promise("DistributedDataParallel under `torch.compile`")
def test_compiled_ddp(sn, two_ranks):
    two_ranks.run(ddp, sn.name, True, True)


def fsdp(name):
    whole = model(name)
    parallel = fully_shard(copy.deepcopy(whole))
    train(parallel, whole)
    assert_same_state(parallel, whole)


@pytest.mark.promise("FSDP2: normalize, then `fully_shard`")
def test_fully_shard(sn, two_ranks):
    two_ranks.run(fsdp, sn.name)


def fsdp_mixed_precision(name):
    parallel = fully_shard(model(name), mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    parallel(torch.randn(3, 6)).sum().backward()
    for key, value in parallel.state_dict().items():
        assert value.dtype == torch.float32, key


@pytest.mark.promise(
    "FSDP2 in bfloat16, u and v in float32",
    torch=("RuntimeError: Float and BFloat16", RuntimeError),
)
def test_fully_shard_in_mixed_precision(sn, two_ranks):
    two_ranks.run(fsdp_mixed_precision, sn.name)


def fsdp_weight(name):
    whole = model(name)
    parallel = fully_shard(copy.deepcopy(whole))
    assert_close(parallel[0].weight.full_tensor(), whole[0].weight, **ROUNDING)


@pytest.mark.promise(
    "FSDP2: `layer.weight` outside of forward, sharded",
    hook=("the last forward's, whole", AttributeError),
    parametrization=("RuntimeError: mixed torch.Tensor and DTensor", RuntimeError),
)
def test_weight_of_a_sharded_layer(sn, two_ranks):
    two_ranks.run(fsdp_weight, sn.name)


def fsdp_first(name):
    parallel = fully_shard(nn.Sequential(nn.Linear(6, 8)))

    def normalize_and_run():
        normalize(name, parallel[0])
        parallel(torch.randn(3, 6))

    with pytest.raises(ValueError, match="normalize the model first, then call fully_shard"):
        normalize_and_run()


@pytest.mark.promise(
    "FSDP2: normalizing after `fully_shard` says in one sentence what to do",
    hook=("RuntimeError in `clamp_min_`, at the first forward", RuntimeError),
    parametrization=("RuntimeError in `clamp_min_`", RuntimeError),
)
def test_normalizing_after_fully_shard(sn, two_ranks):
    two_ranks.run(fsdp_first, sn.name)


def tensor_parallel(name, normalize_first):
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 4), torch.randn(3, 6)
    whole = copy.deepcopy(layer)
    if normalize_first:
        normalize(name, layer)
        parallelize = parallelize_module if name == "ours" else torch_parallel.parallelize_module
        parallelize(layer, mesh, ColwiseParallel())
    else:
        torch_parallel.parallelize_module(layer, mesh, ColwiseParallel())
        normalize(name, layer)
    normalize(name, whole).load_state_dict(
        {
            key: value.full_tensor() if isinstance(value, DTensor) else value
            for key, value in layer.state_dict().items()
        }
    )
    part = slice(2 * dist.get_rank(), 2 * dist.get_rank() + 2)
    assert_close(layer(x), whole(x)[:, part], **ROUNDING)
    assert_same_state(layer, whole)


@pytest.mark.promise(
    "Tensor parallel: parallelize, then normalize",
    torch=("RuntimeError in `clamp_min_`", RuntimeError),
)
def test_normalizing_a_parallel_model(sn, two_ranks):
    two_ranks.run(tensor_parallel, sn.name, False)


@pytest.mark.promise(
    "Tensor parallel: normalize, then parallelize, by `snorm_triton.distributed`",
    hook=("RuntimeError in `clamp_min_`", RuntimeError),
    parametrization=("KeyError", KeyError),
)
def test_parallelizing_a_normalized_model(sn, two_ranks):
    two_ranks.run(tensor_parallel, sn.name, True)
