"""`python -m snorm_triton sigmas`: a checkpoint's singular values, whatever its layout."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import spectral_norm as legacy_spectral_norm
from torch.nn.utils import weight_norm as legacy_weight_norm

from snorm_triton import orthogonal, spectral_norm, weight_norm
from snorm_triton.cli import main as command_line
from snorm_triton.spectra.values import spectrum
from snorm_triton.spectra.weights import weights_of

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
SPECTRAL = [spectral_norm, parametrizations.spectral_norm, legacy_spectral_norm]
WEIGHT = [weight_norm, parametrizations.weight_norm, legacy_weight_norm]


def layers():
    return [
        nn.Linear(5, 4),
        nn.Conv2d(3, 8, 3),
        nn.ConvTranspose2d(3, 5, 2),
        nn.ConvTranspose2d(6, 6, 2),  # of whose shape nothing tells the dimension of its outputs
        nn.Embedding(7, 3),
    ]


def matrix_of(layer, weight):
    return weight.detach().double().movedim(int("Transpose" in type(layer).__name__), 0).flatten(1)


@pytest.mark.parametrize("norm", SPECTRAL, ids=["ours", "parametrization", "hook"])
def test_spectral_norms_of_any_layout(norm):
    for layer in layers():
        raw = torch.linalg.svdvals(matrix_of(layer, layer.weight))
        norm(layer, n_power_iterations=20)
        if isinstance(layer, nn.Embedding):
            inputs = torch.zeros(1, dtype=torch.long)
        elif isinstance(layer, nn.Linear):
            inputs = torch.randn(1, 5)
        else:
            inputs = torch.randn(1, layer.in_channels, 4, 4)
        layer(inputs)
        layer.eval()(inputs)
        (found,) = map(spectrum, weights_of(layer.state_dict()))
        assert found.name == "weight"
        assert found.norm == "spectral"
        assert found.layout == ("hook" if norm is legacy_spectral_norm else "parametrization")
        used = torch.linalg.svdvals(matrix_of(layer, layer.weight))
        torch.testing.assert_close(found.raw, raw)
        torch.testing.assert_close(found.normalized, used, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", WEIGHT, ids=["ours", "parametrization", "hook"])
@pytest.mark.parametrize("dim", [0, 1, None])
def test_weight_norms_of_any_layout(norm, dim):
    layer = norm(nn.Linear(5, 4), dim=dim)
    with torch.no_grad():
        for name, g in layer.named_parameters():
            if name.endswith(("original0", "weight_g")):
                g *= torch.rand_like(g) + 0.5
    layer(torch.zeros(1, 5))
    (found,) = map(spectrum, weights_of(layer.state_dict()))
    assert found.norm == "weight"
    weight = layer.weight.mT if dim == 1 else layer.weight
    torch.testing.assert_close(found.normalized, torch.linalg.svdvals(weight.detach().double()))


def test_plain_weights_are_used_as_they_are():
    layer = nn.ConvTranspose2d(3, 5, 2)
    state = {"step": 3, "up": {"0": layer.state_dict()}}
    (found,) = map(spectrum, weights_of(state, ["up: *"]))
    assert (found.name, found.norm, found.layout) == ("up: 0: weight", "none", "plain")
    expected = torch.linalg.svdvals(matrix_of(layer, layer.weight))
    torch.testing.assert_close(found.raw, expected)
    torch.testing.assert_close(found.normalized, expected)
    (other,) = map(spectrum, weights_of(state))
    assert other.raw.shape == (3,)


@pytest.mark.parametrize(
    "layer",
    [
        orthogonal(nn.Linear(4, 4)),
        spectral_norm(spectral_norm(nn.Linear(4, 4))),
        spectral_norm(nn.Conv2d(3, 4, 3), operator="convolution", input_shape=(3, 8, 8)),
    ],
    ids=["orthogonal", "twice", "convolution"],
)
def test_what_a_checkpoint_does_not_tell_is_not_guessed(layer):
    (found,) = map(spectrum, weights_of(layer.state_dict()))
    assert found.norm == "other"
    assert found.normalized is None
    assert found.raw.shape == (4,)


def test_state_dicts_in_lists():
    state = {"models": [nn.Linear(3, 3).state_dict(), nn.Linear(3, 3).state_dict()]}
    names = [weight.name for weight in weights_of(state)]
    assert names == ["models: 0: weight", "models: 1: weight"]


def test_optimizers_hold_no_weights():
    layer = nn.Linear(3, 3)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.randn(2, 3)).sum().backward()
    optimizer.step()
    state = {"optimizer": optimizer.state_dict(), "model": layer.state_dict()}
    assert [weight.name for weight in weights_of(state)] == ["model: weight"]


def test_a_zero_weight_and_one_that_is_not_finite():
    zero = spectral_norm(nn.Linear(2, 2))
    zero.weight = torch.zeros(2, 2)
    (found,) = map(spectrum, weights_of(zero.state_dict()))
    assert found.normalized.tolist() == [0, 0]
    assert found.stable_rank == 0
    (found,) = map(spectrum, weights_of({"weight": torch.full((2, 2), torch.nan)}))
    assert found.raw.isnan().all()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_the_command(tmp_path, capsys, suffix):
    source, plot = tmp_path / f"model{suffix}", tmp_path / "model.png"
    model = nn.Sequential(spectral_norm(nn.Linear(5, 4)), orthogonal(nn.Linear(4, 4)))
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    (save_file if suffix == ".safetensors" else torch.save)(state, source)
    assert command_line.main(["sigmas", str(source), "--plot", str(plot)]) == 0
    header, first, second, _, drawn = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["weight", "shape", "norm", "layout"]
    assert first.split()[:4] == ["0.weight", "4x5", "spectral", "parametrization"]
    assert 0.999 < float(first.split()[6]) < 1.1
    assert "not known" in second
    assert drawn == f"drawn in {plot}"
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("name", "contents", "options", "sentence"),
    [
        ("none.pt", None, [], "No such file or directory"),
        ("text.pt", b"no checkpoint", [], "is no file of tensors"),
        ("text.safetensors", b"no checkpoint", [], "is no .safetensors file"),
        ("empty.pt", {"bias": torch.zeros(3)}, [], "holds no weight of two dimensions or more"),
        ("half.pt", {"weight_orig": torch.zeros(3, 3), "weight_v": torch.zeros(3)}, [], "weight_u"),
        ("good.pt", {"weight": torch.eye(3)}, ["--plot", "sigmas.txt"], "must end in .png"),
        ("good.pt", {"weight": torch.eye(3)}, ["--plot", "no/such.png"], "No such file or"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(tmp_path, name, contents, options, sentence, capsys):
    source = tmp_path / name
    if isinstance(contents, bytes):
        source.write_bytes(contents)
    elif contents is not None:
        torch.save(contents, source)
    message = command_line.main(["sigmas", str(source), *options])
    assert isinstance(message, str)
    assert sentence in message
    assert "\n" not in message
