"""A bound and a scale in whatever runs an access: compiled, transformed, exported, saved."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, vmap
from torch.testing import assert_close

from snorm_triton import (
    apply_spectral_norm,
    sigmas,
    spectral_norm,
)

pytestmark = [
    # As torch imports its own.
    pytest.mark.filterwarnings("ignore:.*torch.jit"),
    # As dynamo looks at its inputs.
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),
]


def norm_of(layer):
    return layer.parametrizations.weight[0]


def step(layer):
    layer(torch.randn(2, 6)).square().sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()


@pytest.mark.parametrize("options", [{"scale": "learned"}, {"bound": 0.1, "scale": 2.0}], ids=str)
class TestWays:
    """Whatever runs an access, it computes what eager mode computes."""

    @pytest.fixture
    def model(self, options):
        model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
        return apply_spectral_norm(model, **options)

    def results(self, run, model):
        x = torch.linspace(-1, 1, 12).view(2, 6)
        y = run(x)
        grads = torch.autograd.grad(y.square().sum(), list(model.parameters()))
        return y, *grads

    @pytest.mark.parametrize("foreach", [False, True])
    def test_compiled(self, model, foreach):
        apply_spectral_norm(model, foreach=foreach)
        twin = copy.deepcopy(model)
        torch.compiler.reset()
        compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
        for _ in range(2):
            assert_close(self.results(compiled, twin), self.results(model, model))

    def test_exported(self, model):
        x = torch.randn(2, 6)
        program = torch.export.export(model.eval(), (x,))
        assert_close(program.module()(x), model(x))

    def test_transformed(self, model):
        x = torch.randn(2, 6)
        twin = copy.deepcopy(model)
        parameters = {key: p.detach() for key, p in twin.named_parameters()}
        grads = grad(lambda p: functional_call(twin, p, (x,)).square().sum())(parameters)
        model(x).square().sum().backward()
        for key, p in model.named_parameters():
            assert_close(grads[key], p.grad)

    def test_per_sample(self, model):
        model.eval()
        parameters = {key: p.detach() for key, p in model.named_parameters()}

        def loss(p, x):
            return functional_call(model, p, (x,)).square().sum()

        x = torch.randn(3, 6)
        each = vmap(grad(loss), (None, 0))(parameters, x)
        model(x).square().sum().backward()
        for key, p in model.named_parameters():
            assert_close(each[key].sum(0), p.grad)

    def test_forward_mode(self, model):
        model.eval()
        x, tangent = torch.randn(2, 6), [torch.randn_like(p) for p in model.parameters()]
        names = [key for key, _ in model.named_parameters()]
        y = model(x)
        with forward_ad.dual_level():
            duals = {
                key: forward_ad.make_dual(p.detach(), t)
                for key, p, t in zip(names, model.parameters(), tangent, strict=True)
            }
            ours = forward_ad.unpack_dual(functional_call(model, duals, (x,))).tangent
        step = 1e-3
        with torch.no_grad():
            for p, t in zip(model.parameters(), tangent, strict=True):
                p += step * t
        assert_close(ours, (model(x) - y) / step, rtol=0.02, atol=0.02)

    def test_under_autocast(self, model):
        x = torch.randn(2, 6)
        with torch.autocast("cpu", torch.bfloat16):
            y = model(x)
        assert y.dtype == torch.bfloat16
        assert_close(y.float(), model(x), rtol=0.05, atol=0.05)

    def test_saved_and_loaded(self, model, options):
        step(model)
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        other = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
        apply_spectral_norm(other, **options)
        other.load_state_dict(torch.load(file, weights_only=True))
        x = torch.randn(2, 6)
        assert torch.equal(other.eval()(x), model.eval()(x))

    @pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
    def test_of_a_convolution_itself(self, options, kind):
        layer = kind(2, 3, 3)
        shape = {"operator": "convolution", "input_shape": (2, 5, 5)}
        spectral_norm(layer, **shape, **options).eval()
        sigma = sigmas(layer)["weight"]
        scale = norm_of(layer).scale if options["scale"] == "learned" else options["scale"]
        divisor = sigma if "bound" not in options else (sigma / options["bound"]).clamp_min(1)
        assert_close(layer.weight, scale * layer.weight_orig / divisor)

    def test_of_a_complex_weight(self, options):
        layer = spectral_norm(nn.Linear(6, 4, dtype=torch.complex64), **options).eval()
        norm = norm_of(layer)
        sigma = sigmas(layer)["weight"]
        scale = norm.scale if options["scale"] == "learned" else options["scale"]
        divisor = sigma if "bound" not in options else (sigma / options["bound"]).clamp_min(1)
        weight = layer.weight
        assert_close(weight, scale * layer.weight_orig / divisor)
        weight.abs().sum().backward()
        if options["scale"] == "learned":
            assert norm.scale.grad.dtype == torch.float32
