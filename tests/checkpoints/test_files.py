"""`python -m snorm_triton convert-checkpoint`."""

import os
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import spectral_norm as legacy_spectral_norm

from snorm_triton import spectral_norm
from snorm_triton.checkpoints import files as checkpoint_files
from snorm_triton.cli import main as command_line


def model_of(norm):
    return nn.Sequential(norm(nn.Linear(4, 3)), nn.BatchNorm1d(3), norm(nn.Linear(3, 3)))


def convert(source, target, to="ours"):
    return command_line.main(["convert-checkpoint", str(source), str(target), "--to", to])


@pytest.fixture
def saved():
    return model_of(legacy_spectral_norm)


@pytest.fixture
def legacy_file(tmp_path, saved):
    path = tmp_path / "legacy.pt"
    torch.save(saved.state_dict(), path)
    return path


def assert_same_weights(state, saved):
    model = model_of(spectral_norm)
    model.load_state_dict(state, strict=True)
    for key, value in saved.state_dict().items():
        if key.endswith("_orig"):
            ours = key.replace("weight_orig", "parametrizations.weight.original")
            assert torch.equal(state[ours], value)


def test_a_file_there_and_back(tmp_path, saved, legacy_file, capsys):
    ours, again = tmp_path / "ours.pt", tmp_path / "again.pt"
    assert convert(legacy_file, ours) == 0
    printed = capsys.readouterr().out
    assert printed == f"0.weight\n2.weight\n2 converted to the layout 'ours' in {ours}\n"
    assert_same_weights(torch.load(ours, weights_only=True), saved)
    assert convert(ours, again, "legacy") == 0
    state, expected = (torch.load(path, weights_only=True) for path in (again, legacy_file))
    assert list(state) == list(expected)
    assert state._metadata == expected._metadata
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    model_of(legacy_spectral_norm).load_state_dict(state, strict=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.pt", "legacy.pt", "ours.pt"]


def test_it_runs_as_a_command(tmp_path, legacy_file):
    command = [sys.executable, "-m", "snorm_triton", "convert-checkpoint", legacy_file]
    run = subprocess.run(
        [*command, tmp_path / "out.pt", "--to", "torch"], capture_output=True, text=True
    )
    assert run.returncode == 0
    assert run.stdout.startswith("0.weight\n2.weight\n")
    run = subprocess.run(
        [*command, tmp_path / "out.pt", "--to", "legacy"], capture_output=True, text=True
    )
    assert run.returncode == 1
    assert "Traceback" not in run.stderr


def test_dicts_in_dicts(tmp_path, saved, capsys):
    discriminator, optimizer = saved.state_dict(), torch.optim.Adam(saved.parameters())
    saved(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    checkpoint = {
        "models": {"d": discriminator, "g": nn.Linear(2, 2).state_dict()},
        "best": discriminator,
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "history": [1.0, 2.0],
        7: None,
    }
    source, target = tmp_path / "in.pt", tmp_path / "out.pt"
    torch.save(checkpoint, source)
    assert convert(source, target) == 0
    assert capsys.readouterr().out.startswith("models: d: 0.weight\nmodels: d: 2.weight\n2 conv")
    result = torch.load(target, weights_only=True)
    assert list(result) == list(checkpoint)
    assert result["best"] is result["models"]["d"]
    assert_same_weights(result["best"], saved)
    assert result["models"]["g"].keys() == {"weight", "bias"}
    assert (result["epoch"], result["history"], result[7]) == (3, [1.0, 2.0], None)
    model = model_of(spectral_norm)
    torch.optim.Adam(model.parameters()).load_state_dict(result["optimizer"])
    for parameter, other in zip(model.parameters(), saved.parameters(), strict=True):
        assert parameter.shape == other.shape


def test_tied_tensors_stay_tied(tmp_path):
    layer = legacy_spectral_norm(nn.Linear(3, 3))
    source = tmp_path / "tied.pt"
    torch.save(nn.Sequential(layer, layer).state_dict(), source)
    assert convert(source, source) == 0
    state = torch.load(source, weights_only=True)
    first, second = (state[f"{i}.parametrizations.weight.original"] for i in range(2))
    assert first.data_ptr() == second.data_ptr()


def test_safetensors(tmp_path, saved):
    source, target = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file(dict(saved.state_dict()), source, {"step": "7"})
    assert convert(source, target) == 0
    assert_same_weights(load_file(target), saved)
    with safe_open(target, "pt") as file:
        assert file.metadata() == {"step": "7"}
    assert convert(target, target, "legacy") == 0
    state = load_file(target)
    assert all(torch.equal(state[key], value) for key, value in load_file(source).items())


def test_safetensors_is_asked_for_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_files, "find_spec", lambda name: None)
    message = convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    assert message.endswith("needs the package safetensors: pip install safetensors")


def test_the_file_may_be_replaced_by_its_conversion(saved, legacy_file):
    legacy_file.chmod(0o640)
    assert convert(legacy_file, legacy_file) == 0
    assert legacy_file.stat().st_mode & 0o777 == 0o640
    assert_same_weights(torch.load(legacy_file, weights_only=True), saved)
    assert [path.name for path in legacy_file.parent.iterdir()] == ["legacy.pt"]


def test_a_link_stays_a_link(tmp_path, saved, legacy_file):
    link = tmp_path / "link.pt"
    link.symlink_to(legacy_file)
    assert convert(link, link) == 0
    assert link.is_symlink()
    assert_same_weights(torch.load(legacy_file, weights_only=True), saved)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_is_not_complete_is_not_left(monkeypatch, legacy_file, error):
    before = legacy_file.read_bytes()

    def write_half(value, file):
        file.write(b"half")
        raise error

    monkeypatch.setattr(checkpoint_files.torch, "save", write_half)
    message = convert(legacy_file, legacy_file)
    assert message in (
        f"{legacy_file}: No space left on device",
        "interrupted: nothing was written",
    )
    assert legacy_file.read_bytes() == before
    assert [path.name for path in legacy_file.parent.iterdir()] == ["legacy.pt"]


class Touch:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("content", ["pickle", "archive", "module", "script", "text", "cut", ""])
def test_a_file_that_holds_more_or_less_than_tensors_is_refused(tmp_path, legacy_file, content):
    path, trace = tmp_path / "in.pt", tmp_path / "trace"
    if content == "pickle":
        path.write_bytes(pickle.dumps(Touch(trace)))
    elif content == "archive":
        torch.save({"state": Touch(trace)}, path)
    elif content == "module":
        torch.save(nn.Linear(2, 2), path)
    elif content == "script":
        with warnings.catch_warnings(action="ignore"):
            torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)
    elif content == "cut":
        path.write_bytes(legacy_file.read_bytes()[:-40])
    else:
        path.write_text(content)
    message = convert(path, tmp_path / "out.pt")
    assert message.startswith(f"{path} is no file of tensors that torch.load(weights_only=True)")
    assert "\n" not in message
    assert not trace.exists()
    assert not (tmp_path / "out.pt").exists()
    assert "weights_only` set to `False`" not in message
    assert content != "archive" or message.endswith("mkdir")


def test_a_safetensors_file_that_is_none_is_refused(tmp_path):
    path = tmp_path / "in.safetensors"
    path.write_text("no tensors here")
    message = convert(path, tmp_path / "out.safetensors")
    assert message.startswith(f"{path} is no .safetensors file: ")


def test_what_is_wrong_is_said(tmp_path, legacy_file):
    out = tmp_path / "out.pt"
    message = convert(legacy_file, out, "legacy")
    assert message == (
        f"{legacy_file}: no spectral norm to convert: those it has are in the layout 'legacy'"
    )
    plain = tmp_path / "plain.pt"
    torch.save({"model": nn.Linear(2, 2).state_dict()}, plain)
    assert convert(plain, out).endswith("no spectral norm to convert: it has none")
    torch.save([1, 2], plain)
    assert convert(plain, out).endswith("it has none")
    state = torch.load(legacy_file, weights_only=True)
    del state["2.weight_u"]
    torch.save({"ema": {"d": state}}, plain)
    message = convert(plain, out)
    assert message.startswith("plain.pt['ema']['d']: 2.weight_u is missing beside 2.weight_orig")
    assert convert(tmp_path / "none.pt", out) == f"{tmp_path}/none.pt: No such file or directory"
    assert convert(tmp_path / "none.safetensors", tmp_path / "out.safetensors").endswith(
        "none.safetensors: No such file or directory"
    )
    assert convert(tmp_path, out).endswith("Is a directory")
    folder = tmp_path / "none"
    assert convert(legacy_file, folder / "out.pt") == f"{folder}: No such file or directory"
    message = convert(legacy_file, tmp_path / "out.safetensors")
    assert message.endswith("both files must be .safetensors, or neither")
    assert not out.exists()


def test_the_layout_must_be_named(legacy_file):
    with pytest.raises(SystemExit):
        command_line.main(["convert-checkpoint", str(legacy_file), str(legacy_file)])
