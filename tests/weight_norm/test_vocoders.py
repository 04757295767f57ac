"""Real vocoders on torch's weight norm and on ours, from the same state dict."""

import copy
import warnings
from functools import partial

import pytest
import torch
from torch.nn.utils import parametrizations
from torch.nn.utils import weight_norm as torchs_hook

from bench.vocoders import DACDecoder, HiFiGAN
from snorm_triton import apply_weight_norm, fold, weight_norm


def hooked(module):
    with warnings.catch_warnings(action="ignore"):  # it is deprecated
        return torchs_hook(module)


VOCODERS = {
    "HiFi-GAN": (partial(HiFiGAN, channels=64), (2, 80, 3)),
    "DAC": (partial(DACDecoder, latent=16, channels=64), (2, 16, 3)),
}


@pytest.fixture(params=VOCODERS)
def vocoder(request):
    return VOCODERS[request.param]


def outputs_and_gradients(model, x):
    output = model(x)
    (output.square().mean() + output.abs().mean()).backward()
    grads = {
        name.replace("_g", ".0").replace("_v", ".1"): p.grad for name, p in model.named_parameters()
    }
    return output.detach(), grads


@pytest.mark.parametrize("torchs", [parametrizations.weight_norm, hooked], ids=["new", "hook"])
@pytest.mark.parametrize("foreach", [False, True])
def test_outputs_and_gradients(vocoder, torchs, foreach, relative_error, report_line, request):
    make, shape = vocoder
    torch.manual_seed(0)
    theirs = make(torchs)
    ours = apply_weight_norm(make(), foreach=foreach)
    assert not ours.load_state_dict(theirs.state_dict()).unexpected_keys
    x = torch.randn(shape)
    (mine, my_grads), (its, its_grads) = (
        outputs_and_gradients(model, x) for model in (ours, theirs)
    )
    errors = [
        relative_error(a.flatten(), b.flatten())
        for a, b in zip(sorted_grads(ours, my_grads), sorted_grads(theirs, its_grads), strict=True)
    ]
    output = relative_error(mine, its)
    report_line(
        "Vocoders on torch's weight norm and on ours, relative errors",
        f"{request.node.callspec.id:24} output {output:.0e}  largest of "
        f"{len(errors)} gradients {max(errors):.0e}",
    )
    assert output < 1e-5
    assert max(errors) < 1e-4


def sorted_grads(model, grads):
    """By module, g before v before bias, whatever each style calls them."""
    order = {"original0": 0, "weight.0": 0, "original1": 1, "weight.1": 1, "bias": 2, "alpha": 2}

    def key(name):
        path = name.replace("parametrizations.weight.", "").replace("weight.", "")
        module, _, last = path.rpartition(".")
        return module, order.get(last, {"0": 0, "1": 1}.get(last, 2))

    return [grads[name] for name in sorted(grads, key=key)]


def test_a_folded_vocoder_serves(vocoder):
    make, shape = vocoder
    model = make(weight_norm).eval()
    served, x = copy.deepcopy(model), torch.randn(shape)
    names = fold(served)
    with torch.no_grad():
        torch.testing.assert_close(served(x), model(x))
    assert served.state_dict().keys() == make().state_dict().keys()
    assert len(names) == sum(name.endswith("original0") for name in model.state_dict())
