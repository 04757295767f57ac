"""Compiled and exported."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from snorm_triton import remove_spectral_norm

pytestmark = [
    # What torch, and the packages that export to ONNX, say of themselves.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()


def model_of(sn):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 4, 3), nn.Linear(4 * 6 * 6, 5)
    for layer in layers:
        sn.spectral_norm(layer)
        nn.init.normal_(sn.original(layer))
    first, second, last = layers
    return nn.Sequential(first, nn.ReLU(), second, nn.Flatten(), last)


def fully_connected(sn):
    """Without convolutions, some of which inductor cannot compile for every processor."""
    torch.manual_seed(0)
    return sn.apply(nn.Sequential(nn.Flatten(), nn.Linear(108, 8), nn.ReLU(), nn.Linear(8, 3)))


def images(number=2):
    return torch.randn(number, 3, 6, 6)


def gradients(output, model):
    model.zero_grad()
    output.square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def compile_and_compare(model, plain, compiler):
    compiled = torch.compile(model, backend=compiler, fullgraph=True)
    for number in (2, 3, 4):
        x = images(number)
        for one, other in zip(
            gradients(compiled(x), model), gradients(plain(x), plain), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.promise(
    "`torch.compile(fullgraph=True)`, forward and backward, batches of any size",
    hook=("gradients silently off in layers of 2 to 4 outputs", AssertionError),
)
def test_compile(sn):
    compile_and_compare(fully_connected(sn), fully_connected(sn), "inductor")


@pytest.mark.promise('The same with `backend="aot_eager"`, which traces and generates no code')
def test_compile_to_a_trace(sn):
    compile_and_compare(model_of(sn), model_of(sn), "aot_eager")


@pytest.mark.promise(
    "A compiled model inside a checkpoint: the gradients of the plain model",
    torch=("silently off", AssertionError),
)
def test_compiled_inside_a_checkpoint(sn):
    model, plain = model_of(sn).double(), model_of(sn).double()
    compiled, x = torch.compile(model, backend="aot_eager"), images().double()
    output = checkpoint(compiled, x, use_reentrant=False)
    for one, other in zip(gradients(output, model), gradients(plain(x), plain), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.promise(
    "A checkpoint inside compiled code, one forward before each backward",
    torch=("refused: Unsupported", torch._dynamo.exc.Unsupported),
)
def test_a_checkpoint_inside_compiled_code(sn):
    model, plain = model_of(sn).double(), model_of(sn).double()
    x = images().double()
    compiled = torch.compile(
        lambda x: checkpoint(model, x, use_reentrant=False), backend="aot_eager", fullgraph=True
    )
    output = compiled(x)
    for one, other in zip(gradients(output, model), gradients(plain(x), plain), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.promise("`torch.export` of a model in evaluation")
# Of the hook's, whose forward assigns an attribute.
@pytest.mark.filterwarnings("ignore:The tensor attributes self:UserWarning")
@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects:UserWarning")
@pytest.mark.parametrize("strict", [False, True])
def test_export(sn, strict):
    model, x = model_of(sn).eval(), images()
    program = torch.export.export(model, (x,), strict=strict)
    torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-4)
    assert "snorm_triton" not in program.graph_module.code  # torch's own operators alone


@pytest.mark.promise("ONNX of a model in evaluation, run by onnxruntime")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_onnx(sn, tmp_path):
    model, x = model_of(sn).eval(), images()
    path = tmp_path / "model.onnx"
    torch.onnx.export(model, (x,), dynamo=True, verbose=False).save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(output, model(x).detach().numpy(), rtol=1e-3, atol=1e-3)


@pytest.mark.promise("`torch.jit.trace` of a model in evaluation, its self-check on")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_trace(sn):
    model, x = model_of(sn).eval(), images()
    torch.testing.assert_close(torch.jit.trace(model, x)(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.promise("A whole model folded in one call", torch="one call for each layer")
def test_fold(sn):
    model, x = model_of(sn).eval(), images()
    expected = model(x)
    remove_spectral_norm(model, recursive=True)
    assert torch.equal(model(x), expected)
    names = {f"{layer}.{name}" for layer in (0, 2, 4) for name in ("weight", "bias")}
    assert set(model.state_dict()) == names


@pytest.mark.promise("`torch.jit.script` of a folded model")
def test_script(sn):
    model, x = model_of(sn).eval(), images()
    expected = model(x)
    for layer in (model[0], model[2], model[4]):
        sn.remove(layer, "weight")
    torch.testing.assert_close(torch.jit.script(model)(x), expected)


@pytest.mark.promise("`quantize_dynamic` of a folded model")
@pytest.mark.filterwarnings("ignore:torch.quantize:UserWarning")
def test_quantize(sn):
    model, x = model_of(sn).eval(), images()
    expected = model(x)
    for layer in (model[0], model[2], model[4]):
        sn.remove(layer, "weight")
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    assert (quantized(x) - expected).norm() < 0.05 * expected.norm()
