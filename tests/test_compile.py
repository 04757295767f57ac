"""torch.compile: what eager code computes, in one graph, compiled once."""

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

from snorm_triton import apply_spectral_norm, spectral_norm
from snorm_triton.functional import spectral_normalize
from snorm_triton.ops.modes import gradient_operator, operators

pytestmark = [
    # As torch imports itself.
    pytest.mark.filterwarnings("ignore:.*torch.jit"),
    # As dynamo looks at its inputs.
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),
]
COMPILERS = ["aot_eager", "inductor"]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()


@pytest.fixture(params=[False, True], ids=["each", "foreach"])
def foreach(request):
    return request.param


def discriminator(**options):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 3),
        nn.Flatten(),
        nn.Linear(4 * 6 * 6, 5),
    )
    return apply_spectral_norm(model.double(), **options)


def images(number):
    return torch.randn(number, 3, 6, 6, dtype=torch.float64)


def gradients(loss, model):
    model.zero_grad()
    loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def assert_close(ones, others):
    for one, other in zip(ones, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("power_iter", ["access", "update"])
def test_training_gives_what_eager_training_gives_and_compiles_no_more(
    compiler, foreach, power_iter
):
    model, plain = (discriminator(foreach=foreach, power_iter=power_iter) for _ in range(2))
    compiled = torch.compile(model, backend=compiler, fullgraph=True)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.05) for each in (model, plain)]

    def step(number):
        real, fake = images(number), images(number)
        losses = [d(real).sum() - d(fake).square().sum() for d in (compiled, plain)]
        assert_close(losses[:1], losses[1:])
        assert_close(*(gradients(*each) for each in zip(losses, (model, plain), strict=True)))
        for optimizer in optimizers:
            optimizer.step()
        assert_close(model.buffers(), plain.buffers())

    step(2)
    step(3)  # to dynamic shapes
    with torch.compiler.set_stance("fail_on_recompile"):
        step(4)
        step(2)
    before = copy.deepcopy(list(model.buffers()))
    for each in (model, plain):
        each.eval()
    x = images(5)
    assert_close([compiled(x)], [plain(x)])
    assert_close(list(model.buffers()), before)


@pytest.mark.parametrize("power_iter", ["access", "update"])
def test_compiled_code_takes_the_backend_that_eager_code_takes(backend, foreach, power_iter):
    options = {"backend": backend, "foreach": foreach, "power_iter": power_iter}
    model, plain = (discriminator(**options) for _ in range(2))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.05) for each in (model, plain)]
    for _ in range(2):
        x = images(2)
        assert_close(
            gradients(compiled(x).square().sum(), model), gradients(plain(x).square().sum(), plain)
        )
        for optimizer in optimizers:
            optimizer.step()
        assert_close(model.buffers(), plain.buffers())


@pytest.mark.parametrize("power_iter", ["access", "update"])
def test_two_forwards_in_one_graph(foreach, power_iter):
    model, plain = (discriminator(foreach=foreach, power_iter=power_iter) for _ in range(2))
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.05) for each in (model, plain)]

    def loss(model, real, fake):
        return model(real).sum() - model(fake).square().sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for _ in range(3):
        real, fake = images(2), images(2)
        assert_close(
            gradients(compiled(model, real, fake), model), gradients(loss(plain, real, fake), plain)
        )
        for optimizer in optimizers:
            optimizer.step()
        assert_close(model.buffers(), plain.buffers())


def test_a_forward_broken_into_graphs_gets_one_prepared_weight():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 5)

        def forward(self, x):
            hidden = self.first(x)
            torch._dynamo.graph_break()
            return self.last(hidden) + self.last(hidden).tanh()

    torch.manual_seed(0)
    model = apply_spectral_norm(Model(), foreach=True)
    plain = copy.deepcopy(model)
    compiled = torch.compile(model, backend="aot_eager")
    for number in (2, 3, 4):
        x = torch.randn(number, 6)
        assert_close(
            gradients(compiled(x).square().sum(), model), gradients(plain(x).square().sum(), plain)
        )
        assert_close(model.buffers(), plain.buffers())
    assert model.last.parametrizations.weight[0].prepared is None


@pytest.mark.parametrize(
    "make",
    [
        lambda: spectral_norm(nn.Linear(6, 4, dtype=torch.complex64)),
        lambda: spectral_norm(nn.Linear(6, 4), "bias"),
        lambda: spectral_norm(nn.Linear(0, 4)),
        lambda: spectral_norm(spectral_norm(nn.Linear(6, 4))),
        lambda: spectral_norm(nn.Embedding(6, 4)),
        lambda: spectral_norm(nn.Linear(6, 4), n_power_iterations=3).bfloat16(),
        lambda: spectral_norm(nn.Conv2d(6, 4, 3).to(memory_format=torch.channels_last)),
        lambda: spectral_norm(nn.Linear(6, 4).requires_grad_(False)),
    ],
    ids=[
        "complex",
        "vector",
        "empty",
        "stacked",
        "embedding",
        "bfloat16",
        "channels_last",
        "frozen",
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element:UserWarning")
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_every_kind_of_weight(make, training):
    layer = make().train(training)
    name = next(iter(layer.parametrizations))
    plain = copy.deepcopy(layer)
    compiled = torch.compile(lambda: getattr(layer, name), backend="aot_eager", fullgraph=True)
    for _ in range(2):
        ours, theirs = compiled(), getattr(plain, name)
        torch.testing.assert_close(ours, theirs)
        if ours.requires_grad:
            for each in (ours, theirs):
                each.abs().square().sum().backward()
        # Compiled, an evaluation writes nothing, not sigma either.
        if training:
            torch.testing.assert_close(list(layer.buffers()), list(plain.buffers()))
    for one, other in zip(layer.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_the_function_is_differentiable_in_the_weight_and_sigma():
    weight = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    u, v = (torch.randn(size, dtype=torch.float64) for size in (4, 6))

    def loss(weight):
        weight_sn, _, _, sigma = spectral_normalize(weight, u, v, n_power_iterations=2)
        return weight_sn.square().sum() * sigma + sigma.exp()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    (expected,) = torch.autograd.grad(loss(weight), weight)
    (gradient,) = torch.autograd.grad(compiled(weight), weight)
    assert_close([gradient], [expected])


def unit(size):
    vector = torch.randn(size, dtype=torch.float64)
    return vector / vector.norm()


def arguments(n_power_iterations=1, due=(), learned=()):
    """Of the operator, for two weights of different layouts."""
    weights = [torch.randn(4, 3, 2, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64).mT]
    sigmas = [torch.ones((), dtype=torch.float64) for _ in range(2)]
    state = [unit(3), unit(5)], [unit(8), unit(6)], sigmas
    numbers = [1, 0], [n_power_iterations] * 2, [1e-12] * 2
    for weight in weights:
        weight.requires_grad_()
    rescaling = [0.0, 0.5], [1.0, 1.0], list(learned)
    return weights, *state, *numbers, list(due), [True] * 2, *rescaling, torch.float64, "auto"


@pytest.mark.parametrize("n_power_iterations", [0, 1, 2])
def test_the_operator_obeys_torchs_rules(n_power_iterations):
    opcheck(torch.ops.snorm_triton.normalize.default, arguments(n_power_iterations))


def test_the_operator_of_learned_scales_obeys_torchs_rules():
    learned = [torch.full((1,), 2.0, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    opcheck(torch.ops.snorm_triton.normalize.default, arguments(learned=learned))


def test_the_operator_of_the_update_policy_obeys_torchs_rules():
    due = [torch.ones(()), torch.zeros(())]
    opcheck(torch.ops.snorm_triton.normalize.default, arguments(due=due))


def test_the_operator_of_the_gradient_obeys_torchs_rules():
    weights, us, vs, sigmas, dims, *_ = arguments()
    grads = [torch.randn_like(weight, requires_grad=True) for weight in weights]
    operator = torch.ops.snorm_triton.rescale_backward.default
    learned = [torch.full((1,), 2.0, dtype=torch.float64, requires_grad=True) for _ in weights]
    for rescaling in (([], dims, [0.0, 0.5], [1.0, 2.0]), (learned, dims, [0.0, 0.5], [1.0] * 2)):
        opcheck(operator, (grads, weights, us, vs, sigmas, *rescaling, "auto"))


def test_the_operator_of_the_buffers_obeys_torchs_rules():
    opcheck(torch.ops.snorm_triton.write.default, ([torch.zeros(3)], [torch.ones(3)], True))


@pytest.mark.parametrize("n_power_iterations", [0, 1, 2])
@pytest.mark.parametrize("is_flagged", [False, True])
def test_no_operator_waits_for_a_device(n_power_iterations, is_flagged):
    with FakeTensorMode():  # which has no numbers to give
        device = torch.device("cuda")
        weights = [torch.randn(4, 6, device=device)]
        us, vs = [torch.randn(4, device=device)], [torch.randn(6, device=device)]
        sigmas = [torch.ones((), device=device)]
        due = [torch.ones((), device=device)] if is_flagged else []
        numbers = [0], [n_power_iterations], [1e-12], due, [True], [0.5], [1.0], [], torch.float32
        outputs = operators._normalize(weights, us, vs, sigmas, *numbers, "torch")
        assert [tensor.shape for (tensor,) in outputs] == [(4, 6), (4,), (6,), ()]
        grads = gradient_operator._rescale_backward(
            [torch.randn_like(weights[0])], weights, us, vs, sigmas, [], [0], [0.5], [1.0], "torch"
        )
        assert grads[0].shape == (4, 6)


def test_on_a_device_the_flag_chooses_between_a_new_and_the_last_state(monkeypatch):
    # The way of a device, on the CPU: nothing is read on the host.
    monkeypatch.setattr(operators, "_on_host", lambda due: False)
    due = [torch.ones(()), torch.zeros(())]
    weights, us, vs, sigmas, *numbers = arguments(due=due)
    operator = torch.ops.snorm_triton.normalize
    expected = operator(weights, us, vs, sigmas, *numbers[:3], [], *numbers[4:])
    weights_sn, *state = operator(weights, us, vs, sigmas, *numbers)
    for new, chosen, old in zip(expected[1:], state, (us, vs, sigmas), strict=True):
        assert torch.equal(chosen[0], new[0])
        assert torch.equal(chosen[1], old[1])
    assert torch.equal(weights_sn[0], expected[0][0])
    torch.testing.assert_close(weights_sn[1], weights[1] / (sigmas[1] / 0.5).clamp_min(1))


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("power_iter", ["access", "update"])
def test_graphs_of_a_gpu_replay_what_eager_code_computes(foreach, power_iter):
    model, plain = (discriminator(foreach=foreach, power_iter=power_iter).cuda() for _ in range(2))
    compiled = torch.compile(model, mode="reduce-overhead")
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.05) for each in (model, plain)]
    addresses = [buffer.data_ptr() for buffer in model.buffers()]
    for _ in range(5):
        x = images(4).cuda()
        assert_close(
            gradients(compiled(x).square().sum(), model), gradients(plain(x).square().sum(), plain)
        )
        for optimizer in optimizers:
            optimizer.step()
        assert_close(model.buffers(), plain.buffers())
    assert [buffer.data_ptr() for buffer in model.buffers()] == addresses


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
def test_a_captured_step_replays_what_eager_code_computes():
    model, plain = (discriminator(foreach=True).cuda() for _ in range(2))
    x = images(4).cuda()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            gradients(model(x).square().sum(), model)
    torch.cuda.current_stream().wait_stream(side)
    model.load_state_dict(plain.state_dict())
    graph = torch.cuda.CUDAGraph()
    model.zero_grad()
    with torch.cuda.graph(graph):
        model(x).square().sum().backward()
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad.zero_()
        graph.replay()
        assert_close(
            [p.grad for p in model.parameters()], gradients(plain(x).square().sum(), plain)
        )
        assert_close(model.state_dict().values(), plain.state_dict().values())


def test_compiled_autograd():
    model, plain = (
        apply_spectral_norm(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)))
        for _ in range(2)
    )
    plain.load_state_dict(model.state_dict())
    losses = [each(torch.ones(3, 6)).square().sum() for each in (model, plain)]
    losses[1].backward()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager")):
        losses[0].backward()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
