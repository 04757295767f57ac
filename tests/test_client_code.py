"""What the code of others does to a normalized model: loaders, trainers, walkers of hooks."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import snorm_triton
from snorm_triton import (
    apply_spectral_norm,
    checkpoint_contexts,
    fold,
    remove_spectral_norm,
    sigmas,
    spectral_norm,
)

KEYS = ("parametrizations.weight.original", "parametrizations.weight.0._u")


def norm(weight):
    return torch.linalg.matrix_norm(weight.flatten(1), 2).item()


@pytest.mark.parametrize("way", ["load_state_dict", "buffers"])
@pytest.mark.parametrize("policy", ["access", "update"])
def test_a_layer_built_on_meta_and_loaded_tensor_by_tensor(way, policy):
    trained = spectral_norm(nn.Linear(6, 4))
    trained(torch.randn(2, 6))
    state = trained.eval().state_dict()
    with torch.device("meta"):
        layer = spectral_norm(nn.Linear(6, 4), power_iter=policy)
    for key, tensor in state.items():
        if way == "load_state_dict":
            layer.load_state_dict({key: tensor.clone()}, strict=False, assign=True)
            continue
        path, _, name = key.rpartition(".")
        module = layer.get_submodule(path)
        kind = module._buffers if name in module._buffers else module._parameters
        kind[name] = tensor.clone() if kind is module._buffers else nn.Parameter(tensor.clone())
    layer.eval()
    assert torch.equal(layer.weight, trained.weight)
    assert sigmas(layer)["weight"].isfinite()
    layer.train()(torch.randn(2, 6)).sum().backward()


def test_u_and_v_alone_are_no_start():
    trained = spectral_norm(nn.Linear(6, 4), n_power_iterations=50)
    with torch.device("meta"):
        layer = spectral_norm(nn.Linear(6, 4))
    layer.to_empty(device="cpu")
    nn.init.zeros_(layer.bias)
    with torch.no_grad():
        layer.parametrizations.weight.original.copy_(trained.weight_orig)
    assert norm(layer.eval().weight) == pytest.approx(1, abs=0.05)


def test_an_evaluation_of_an_unchanged_weight_computes_nothing():
    class Operations(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            if operation is not torch.ops.aten.detach.default:
                Operations.seen += 1
            return operation(*args, **(kwargs or {}))

    model = nn.Sequential(spectral_norm(nn.Conv2d(3, 4, 3)), nn.Identity()).eval()
    with torch.no_grad():
        model(torch.randn(1, 3, 5, 5))
        expected = model[0].weight
        with Operations():
            again = model[0].weight
        assert Operations.seen == 0
        assert torch.equal(again, expected)
        for change in (
            lambda weight: weight.add_(torch.randn(4, 3, 3, 3)),
            lambda weight: weight.data.add_(1),
            lambda weight: nn.init.normal_(weight),
        ):
            change(model[0].weight_orig)
            sigma = sigmas(model)["0.weight"]
            weight = model[0].weight
            assert not torch.equal(weight, again)
            assert torch.allclose(weight * sigmas(model)["0.weight"], model[0].weight_orig)
            assert sigma.isfinite()
            again = weight
    plain = spectral_norm(nn.Linear(3, 3), cache_evaluation=False).eval()
    with torch.no_grad():
        plain(torch.ones(1, 3))
        assert plain.weight is not plain.weight
        assert plain.parametrizations.weight[0].prepared is None


def test_training_after_an_evaluation_is_what_sigmas_tell(backend):
    layer = spectral_norm(nn.Linear(6, 4), backend=backend)
    layer(torch.ones(1, 6))
    layer.eval()(torch.ones(1, 6))
    with torch.no_grad():
        layer.weight_orig.mul_(3)
    layer.train()
    weight = layer.weight
    assert torch.allclose(weight * sigmas(layer)["weight"], layer.weight_orig)


def test_a_weight_swapped_within_a_forward_is_noticed():
    class Swaps(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 4)

        def forward(self, x):
            seen = []
            for factor in (1.0, -1.0, 1.0):
                self.layer.weight_orig.data = factor * torch.randn(4, 6)
                seen.append(
                    F.cosine_similarity(
                        self.layer.weight.flatten(), self.layer.weight_orig.flatten(), dim=0
                    )
                )
            return torch.stack(seen)

    model = apply_spectral_norm(Swaps(), foreach=True)
    torch.testing.assert_close(model(torch.ones(1, 6)), torch.ones(3))


def test_a_removal_in_one_thread_leaves_the_training_of_another_alone():
    layer = spectral_norm(nn.Linear(6, 4))
    layer(torch.ones(1, 6))
    entered, done = threading.Event(), threading.Event()

    def evaluate():
        from snorm_triton.parametrizations.base import evaluating

        with evaluating():
            entered.set()
            done.wait(10)

    thread = threading.Thread(target=evaluate)
    thread.start()
    entered.wait(10)
    before = layer.weight_u.clone()
    with torch.no_grad():
        layer.weight_orig.copy_(torch.randn(4, 6))
    layer(torch.ones(1, 6))
    done.set()
    thread.join()
    assert not torch.equal(layer.weight_u, before)


def megatron_checkpoint(contexts):
    """As other libraries write it: a forward without gradients, and one with in the backward."""

    class Recomputed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, function, forward, backward, x):
            ctx.function, ctx.backward_context = function, backward
            ctx.save_for_backward(x)
            with forward, torch.no_grad():
                return function(x)

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            leaf = x.detach().requires_grad_()
            with ctx.backward_context, torch.enable_grad():
                output = ctx.function(leaf)
            torch.autograd.backward(output, grad)
            return None, None, None, leaf.grad

    return lambda function, x: Recomputed.apply(function, *contexts(), x)


@pytest.mark.parametrize("way", ["torch", "another library"])
def test_recomputation_with_contexts_is_exact(way):
    if way == "torch":

        def recompute(function, x):
            return checkpoint(function, x, use_reentrant=False, context_fn=checkpoint_contexts)

    else:
        recompute = megatron_checkpoint(checkpoint_contexts)
    gradients = []
    for run in (lambda function, x: function(x), recompute):
        torch.manual_seed(0)
        layer = spectral_norm(nn.Linear(6, 4))
        x = torch.randn(3, 6, requires_grad=True)
        (run(layer, x).square().sum() + run(layer, 2 * x).square().sum()).backward()
        gradients.append((x.grad, layer.weight_orig.grad))
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-6, atol=1e-6)


def test_contexts_of_a_reentrant_checkpoint_are_refused_by_torch():
    layer = spectral_norm(nn.Linear(6, 4))
    x = torch.randn(3, 6, requires_grad=True)
    with pytest.raises(ValueError, match="context_fn"):
        checkpoint(layer, x, use_reentrant=True, context_fn=checkpoint_contexts)


def test_what_torchs_hook_calls_its_state_is_read_through():
    layer = spectral_norm(nn.Linear(6, 4))
    assert layer.weight_orig is layer.parametrizations.weight.original
    assert layer.weight_u is layer.parametrizations.weight[0]._u
    assert layer.weight_v is layer.parametrizations.weight[0]._v
    assert not [key for key in layer.state_dict() if key.startswith("weight_")]
    if not hasattr(layer, "weight_u"):  # the guard of a client
        spectral_norm(layer)
    assert len(layer.parametrizations.weight) == 1
    remove_spectral_norm(layer)
    assert not hasattr(layer, "weight_u")
    assert not hasattr(nn.Linear(2, 2), "weight_orig")


def test_ours_alone_is_taken_off():
    class Scale(nn.Module):
        def forward(self, weight):
            return 2 * weight

    for leave_parametrized in (True, False):
        layer = spectral_norm(nn.Linear(6, 4))
        layer(torch.ones(1, 6))
        parametrize.register_parametrization(layer, "weight", Scale())
        layer.eval()
        expected = layer.weight.detach() if leave_parametrized else 2 * layer.weight_orig.detach()
        remove_spectral_norm(layer, "weight", leave_parametrized)
        assert [type(each) for each in layer.parametrizations.weight] == [Scale]
        torch.testing.assert_close(layer.weight, expected)


@pytest.mark.parametrize("kind", [nn.Bilinear, nn.Embedding])
def test_autocast_output_leaves_alone_what_autocast_does(kind):
    layer = spectral_norm(
        kind(4, 4, 3) if kind is nn.Bilinear else kind(5, 4), autocast_output=True
    )
    inputs = [torch.randn(2, 4)] * 2 if kind is nn.Bilinear else [torch.arange(3)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.weight.dtype == torch.float32
        layer(*inputs).sum().backward()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # of one kind or another
def test_script_says_to_fold_first():
    layer = spectral_norm(nn.Linear(3, 2))
    with pytest.raises(RuntimeError, match=r"snorm_triton\.fold\(model\)"):
        torch.jit.script(layer)


def test_fold_bakes_in_whatever_made_them():
    model = nn.Sequential(
        spectral_norm(nn.Linear(6, 5)),
        torch.nn.utils.spectral_norm(nn.Linear(5, 4)),
        nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)),
        nn.Linear(3, 2),
    )
    model(torch.randn(2, 6))
    model.eval()
    x = torch.randn(2, 6)
    expected = model(x)
    assert fold(model) == ["0.weight", "1.weight", "2.weight"]
    torch.testing.assert_close(model(x), expected)
    assert all(type(layer) is nn.Linear for layer in model)
    assert fold(model) == []
    lazy = nn.Sequential(spectral_norm(nn.Linear(2, 2)), spectral_norm(nn.LazyLinear(2)))
    with pytest.raises(ValueError, match=r"1\.weight waits for its lazy module"):
        fold(lazy)
    assert parametrize.is_parametrized(lazy[0])


def test_public_functions_have_docs():
    for name in ("fold", "patch_torch", "checkpoint_contexts", "left_out"):
        assert "Example:" in getattr(snorm_triton, name).__doc__


def test_a_replaced_forward_is_called():
    layer = spectral_norm(nn.Linear(6, 4))
    parametrization = layer.parametrizations.weight[0]
    original = parametrization.forward
    parametrization.forward = lambda weight: 2 * original(weight)
    assert norm(layer.eval().weight) == pytest.approx(2, rel=0.1)


def test_a_gradient_that_is_missing_stays_missing():
    class Stops(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return None

    layer = spectral_norm(nn.Linear(6, 4))
    Stops.apply(layer.weight).sum().backward()
    assert layer.weight_orig.grad is None


def test_nothing_of_a_transform_is_kept():
    layer = spectral_norm(nn.Linear(6, 4)).eval()
    weights = {"parametrizations.weight.original": torch.randn(5, 4, 6)}
    x = torch.ones(1, 6)
    layer(x)
    torch.func.vmap(lambda each: torch.func.functional_call(layer, each, (x,)))(weights)
    assert layer.parametrizations.weight._handed_out is None


@pytest.mark.parametrize("foreach", [False, True])
def test_pruning_of_the_original_is_seen(foreach):
    model = apply_spectral_norm(nn.Sequential(nn.Linear(8, 8)), foreach=foreach)
    x = torch.randn(2, 8)
    model(x)
    prune.random_unstructured(model[0].parametrizations.weight, "original", amount=0.5)
    assert (model[0].weight == 0).sum() == 32
    expected = x @ model.eval()[0].weight.T + model[0].bias
    torch.testing.assert_close(model(x), expected)
