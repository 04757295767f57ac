"""Files that `python -m snorm_triton convert-checkpoint` refuses, each with a sentence."""

import os
import pickle
import stat
import warnings
import zipfile

import pytest
import torch
from torch import nn

from saved_states import convert
from snorm_triton.cli.main import main


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
    folder = tmp_path / "none"
    assert convert(legacy_file, folder / "out.pt") == f"{folder}: No such file or directory"
    message = convert(legacy_file, tmp_path / "out.safetensors")
    assert message.endswith("both files must be .safetensors, or neither")
    assert not out.exists()


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_what_is_no_file_is_neither_read_nor_replaced(tmp_path, legacy_file, make):
    path, link = tmp_path / "other.pt", tmp_path / "link.pt"
    make(path)
    link.symlink_to(path)
    mode = path.stat().st_mode
    for each in (path, link):
        message = f"{each} is a folder, a device or a pipe, and not a file"
        assert convert(legacy_file, each) == message
        assert convert(each, tmp_path / "out.pt") == message
    assert path.stat().st_mode == mode
    assert not stat.S_ISREG(mode)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["legacy.pt", "link.pt", "other.pt"]


def test_a_loop_of_links(tmp_path, legacy_file):
    loop = tmp_path / "loop.pt"
    loop.symlink_to(loop)
    message = f"{loop}: Too many levels of symbolic links"
    assert convert(legacy_file, loop) == message
    assert convert(loop, tmp_path / "out.pt") == message
    assert loop.is_symlink()


def test_dicts_too_deep_in_one_another(tmp_path, legacy_file):
    """No recursion writes such a pickle: {"x": {"x": ... the state dict ...}}."""
    deep, depth = tmp_path / "deep.pt", 3000
    with zipfile.ZipFile(legacy_file) as shallow, zipfile.ZipFile(deep, "w") as archive:
        for name in shallow.namelist():
            content = shallow.read(name)
            if name.endswith("data.pkl"):
                protocol, value = content[:2], content[2:-1]
                content = protocol + depth * b"}X\x01\x00\x00\x00x" + value + depth * b"s" + b"."
            archive.writestr(name, content)
    message = convert(deep, tmp_path / "out.pt")
    assert message == f"{deep} holds dicts or lists too deep in one another"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep.pt", "legacy.pt"]


def test_an_expanded_weight_is_not_copied_to_compute_v(tmp_path):
    huge = torch.zeros(1).expand(10**6, 10**6)
    source = tmp_path / "huge.pt"
    torch.save({"weight_orig": huge, "weight_u": torch.ones(10**6)}, source)
    message = convert(source, tmp_path / "out.pt")
    assert message.startswith("huge.pt: weight_v is missing, and to compute it weight_orig must be")
    assert message.endswith("and not expanded")


def test_the_layout_must_be_named(legacy_file):
    with pytest.raises(SystemExit):
        main(["convert-checkpoint", str(legacy_file), str(legacy_file)])
