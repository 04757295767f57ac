"""Tensor-parallel models train as the whole model does, in either order of the two calls."""

import copy
import io

import pytest
import torch
import torch.distributed as dist
import torch.distributed.tensor.parallel as torch_parallel
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import snorm_triton
from snorm_triton import apply_spectral_norm, sigmas
from snorm_triton.distributed import parallelize_module

ROUNDING = {"rtol": 1e-5, "atol": 1e-6}
# Not as local tensors, whose sizes torch takes for even.
PLAN = {"0": ColwiseParallel(use_local_output=False), "2": RowwiseParallel()}


def model(hidden=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, hidden), nn.ReLU(), nn.Linear(hidden, 5), nn.Linear(5, 1))


def state_of(layer):
    parametrization = layer.parametrizations.weight[0]
    return parametrization._u, parametrization._v


def normalized_first(hidden=8):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return parallelize_module(apply_spectral_norm(model(hidden)), mesh, PLAN)


def normalized_together(hidden=8):
    """But for the sharded weights, each of which is left to its access."""
    return apply_spectral_norm(normalized_first(hidden), foreach=True)


def parallelized_first(hidden=8):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    module = torch_parallel.parallelize_module(model(hidden), mesh, PLAN)
    apply_spectral_norm(module)
    # Of its own start, drawn for another weight.
    with torch.no_grad():
        whole = apply_spectral_norm(model(hidden)).state_dict()
        for key, value in module.state_dict().items():
            if key.endswith(("_u", "_v")):
                value.copy_(whole[key])
    return module


def trains_as_the_whole(make, hidden):
    parallel, whole = make(hidden), apply_spectral_norm(model(hidden))
    assert parallel.state_dict().keys() == whole.state_dict().keys()
    assert isinstance(parallel[0].parametrizations.weight.original, DTensor)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.05) for each in (parallel, whole)]
    for _ in range(4):
        x = torch.randn(7, 6)
        outputs = []
        for each, optimizer in zip((parallel, whole), optimizers, strict=True):
            optimizer.zero_grad()
            output = each(x)
            (output.square().mean() + each(-x).mean()).backward()
            optimizer.step()
            outputs.append(output)
        assert_close(*outputs, **ROUNDING)
        for key, sigma in sigmas(parallel).items():
            assert_close(sigma, sigmas(whole)[key], rtol=1e-6, atol=0)
    for key, value in parallel.state_dict().items():
        value = value.full_tensor() if isinstance(value, DTensor) else value
        assert_close(value, whole.state_dict()[key], **ROUNDING)


@pytest.mark.parametrize("hidden", [8, 7])
@pytest.mark.parametrize("make", [normalized_first, parallelized_first, normalized_together])
def test_training(two_ranks, make, hidden):
    two_ranks.run(trains_as_the_whole, make, hidden)


def keeps_options_and_state():
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(dist.get_rank())
    layer = nn.Linear(4, 6)
    snorm_triton.spectral_norm(layer, n_power_iterations=3, eps=1e-6)
    snorm_triton.spectral_norm(layer)
    before = layer.parametrizations.weight
    state = [copy.deepcopy(each.state_dict()) for each in before]
    parallelize_module(layer, mesh, ColwiseParallel())
    after = layer.parametrizations.weight
    assert list(after) == list(before)
    assert after is not before
    assert not after.unsafe
    assert layer.parametrizations.weight[0].n_power_iterations == 3
    first = [[x.clone() for x in each.values()] for each in state]
    dist.broadcast_object_list(first, src=0)
    for each, values in zip(after, first, strict=True):
        for ours, value in zip(each.state_dict().values(), values, strict=True):
            assert torch.equal(ours, value)
            assert type(ours) is torch.Tensor


def test_options_and_state_stay(two_ranks):
    two_ranks.run(keeps_options_and_state)


def survives_what_torch_raises():
    mesh = init_device_mesh("cpu", (2,))
    module = nn.Sequential(snorm_triton.spectral_norm(nn.Conv2d(2, 3, 3)))
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(NotImplementedError, match="ColwiseParallel"):
        parallelize_module(module, mesh, {"0": ColwiseParallel()})
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key])


def test_a_plan_that_torch_refuses_leaves_the_model_normalized(two_ranks):
    two_ranks.run(survives_what_torch_raises)


def stock_parallelize_module():
    mesh = init_device_mesh("cpu", (2,))
    for duplicate in (lambda layer: layer, copy.deepcopy):
        layer = duplicate(snorm_triton.spectral_norm(nn.Linear(4, 6)))
        with pytest.raises(
            RuntimeError, match=r"call snorm_triton\.distributed\.parallelize_module"
        ):
            torch_parallel.parallelize_module(layer, mesh, ColwiseParallel())


def test_the_stock_call_on_a_normalized_model_says_what_to_do(two_ranks):
    two_ranks.run(stock_parallelize_module)


def recomputes():
    results = []
    for use in (lambda module, x: module(x), checkpointed):
        module = normalized_first()
        x = torch.linspace(-1, 1, 12).view(2, 6)
        use(module, x).square().sum().backward()
        originals = [layer.parametrizations.weight.original for layer in (module[0], module[2])]
        grads = [original.grad.full_tensor() for original in originals]
        results.append([*grads, *state_of(module[0]), *sigmas(module).values()])
    for plain, recomputed in zip(*results, strict=True):
        assert torch.equal(plain, recomputed)


def checkpointed(module, x):
    return checkpoint(module, x, use_reentrant=False)


def test_recomputation_replays(two_ranks):
    two_ranks.run(recomputes)


def in_half_precision(half):
    parallel, whole = normalized_first(), apply_spectral_norm(model())
    x = torch.randn(3, 6)
    outputs = half(parallel, x), half(whole, x)
    assert_close(*outputs, rtol=2e-2, atol=2e-2)
    for output in outputs:
        output.sum().backward()
    assert {sigma.dtype for sigma in sigmas(parallel).values()} == {torch.float32}
    for key, sigma in sigmas(parallel).items():
        assert_close(sigma, sigmas(whole)[key], rtol=1e-6, atol=0)
    grads = [each[0].parametrizations.weight.original.grad for each in (parallel, whole)]
    assert_close(grads[0].full_tensor(), grads[1], rtol=2e-2, atol=2e-2)


def autocast(module, x):
    with torch.autocast("cpu", torch.bfloat16):
        return module(x)


def bfloat16(module, x):
    return module.bfloat16()(x.bfloat16())


@pytest.mark.parametrize("half", [autocast, bfloat16])
def test_half_precision_keeps_the_estimate_in_float32(two_ranks, half):
    two_ranks.run(in_half_precision, half)


def copied():
    module = normalized_first()
    twin = copy.deepcopy(module)
    x = torch.randn(3, 6)
    assert torch.equal(module(x), twin(x))
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    module(x)
    module.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(module(x), twin(x))


def test_copies_and_files(two_ranks):
    two_ranks.run(copied)


def replicated():
    """By torch's distribute_module, which makes DTensors of u, v and sigma too."""
    mesh = init_device_mesh("cpu", (2,))
    whole = apply_spectral_norm(model())
    module = distribute_module(copy.deepcopy(whole), mesh)
    assert isinstance(module[0].parametrizations.weight[0]._u, DTensor)
    for _ in range(2):
        x = torch.randn(3, 6)
        assert_close(module(distribute_tensor(x, mesh)).full_tensor(), whole(x), **ROUNDING)
    for ours, theirs in zip(state_of(module[0]), state_of(whole[0]), strict=True):
        assert_close(ours.full_tensor(), theirs, **ROUNDING)


def test_a_replicated_model(two_ranks):
    two_ranks.run(replicated)


def from_meta():
    with torch.device("meta"):
        module = parallelized_first()
    module.to_empty(device="cpu")
    whole = apply_spectral_norm(model())
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    given = copy.deepcopy(whole.state_dict()) if dist.get_rank() == 0 else {}
    set_model_state_dict(module, given, options=options)
    x = torch.randn(3, 6)
    assert_close(module(x), whole(x), **ROUNDING)


def test_a_model_made_on_meta(two_ranks):
    two_ranks.run(from_meta)


def once_for_each_update(compiled):
    mesh = init_device_mesh("cpu", (2,))
    whole = apply_spectral_norm(model(), power_iter="update")
    parallel = parallelize_module(copy.deepcopy(whole), mesh, PLAN)
    run = torch.compile(parallel, backend="aot_eager") if compiled else parallel
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.05) for each in (parallel, whole)]
    for _ in range(3):
        for optimizer in optimizers:
            optimizer.step()
        x = torch.randn(7, 6)
        for each in (run, whole):
            (each(x).square().mean() + each(-x).mean()).backward()
        for ours, theirs in zip(state_of(parallel[0]), state_of(whole[0]), strict=True):
            assert_close(ours, theirs, **ROUNDING)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_one_iteration_for_each_update(two_ranks, compiled):
    two_ranks.run(once_for_each_update, compiled)


def compiled():
    module, eager = normalized_first(), normalized_first()
    run = torch.compile(module, backend="aot_eager")
    for _ in range(2):
        x = torch.randn(4, 6)
        outputs = run(x), eager(x)
        assert_close(*outputs, **ROUNDING)
        for output in outputs:
            output.square().mean().backward()
    for ours, theirs in zip(module.parameters(), eager.parameters(), strict=True):
        assert_close(ours.grad, theirs.grad, **ROUNDING)
    for ours, theirs in zip(state_of(module[0]), state_of(eager[0]), strict=True):
        assert_close(ours, theirs, **ROUNDING)
    torch._dynamo.reset()
    whole_graph = torch.compile(module, backend="aot_eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="outside of the graph"):
        whole_graph(x)


def test_compiled_but_for_the_normalization(two_ranks):
    two_ranks.run(compiled)
