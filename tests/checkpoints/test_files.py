"""`python -m snorm_triton convert-checkpoint`."""

import subprocess
import sys

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import spectral_norm as legacy_spectral_norm

from saved_states import convert, model_of
from snorm_triton import spectral_norm
from snorm_triton.checkpoints import formats


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
    assert result["models"]["g"]._metadata == {"": {"version": 1}}
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
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
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


def test_an_expanded_tensor_stays_expanded(tmp_path, saved):
    source, target = tmp_path / "in.pt", tmp_path / "out.pt"
    torch.save({**saved.state_dict(), "mask": torch.zeros(1).expand(10**12)}, source)
    assert convert(source, target) == 0
    assert torch.load(target, weights_only=True)["mask"].shape == (10**12,)
    assert target.stat().st_size < 10_000


def test_a_dict_that_holds_itself(tmp_path, saved):
    source, target = tmp_path / "in.pt", tmp_path / "out.pt"
    checkpoint = {"model": saved.state_dict()}
    checkpoint["self"] = checkpoint
    torch.save(checkpoint, source)
    assert convert(source, target) == 0
    result = torch.load(target, weights_only=True)
    assert result["self"] is result
    assert_same_weights(result["self"]["model"], saved)
