"""What a conversion that does not come to its end leaves behind: nothing, and what was there."""

import fcntl
import resource
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import spectral_norm as legacy_spectral_norm

from saved_states import convert
from snorm_triton.checkpoints import formats

KILLED = """
import os, signal, sys
from snorm_triton.checkpoints import formats
from snorm_triton.cli.main import main

def write_half(value, file):
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)

formats.torch.save = write_half
main(sys.argv[1:])
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def full_disk():
    """No file takes more than 100 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_is_not_complete_is_not_left(monkeypatch, legacy_file, error):
    before = legacy_file.read_bytes()

    def write_half(value, file):
        file.write(b"half")
        raise error

    monkeypatch.setattr(formats.torch, "save", write_half)
    message = convert(legacy_file, legacy_file)
    assert message in (f"{legacy_file}: No space left on device", 130)
    assert legacy_file.read_bytes() == before
    assert names(legacy_file.parent) == ["legacy.pt"]


@pytest.fixture(params=["pt", "safetensors"])
def large_file(request, tmp_path):
    path = tmp_path / f"large.{request.param}"
    state = dict(legacy_spectral_norm(nn.Linear(200, 200)).state_dict())
    (save_file if request.param == "safetensors" else torch.save)(state, path)
    return path


def test_a_full_disk(large_file, full_disk):
    before = large_file.read_bytes()
    assert convert(large_file, large_file) == f"{large_file}: File too large"
    assert large_file.read_bytes() == before
    assert names(large_file.parent) == [large_file.name]


def test_what_a_kill_leaves_is_removed_by_the_next_run(tmp_path, legacy_file):
    target = tmp_path / "out[1].pt"
    command = ["convert-checkpoint", legacy_file, target, "--to", "ours"]
    run = subprocess.run([sys.executable, "-c", KILLED, *command], capture_output=True)
    assert run.returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 2
    assert convert(legacy_file, target) == 0
    assert names(tmp_path) == ["legacy.pt", "out[1].pt"]


def test_what_another_process_writes_is_left_alone(tmp_path, legacy_file):
    partial = tmp_path / ".out.pt.0123abcd.partial"
    with partial.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert convert(legacy_file, tmp_path / "out.pt") == 0
        assert partial.exists()
    assert convert(legacy_file, tmp_path / "out.pt") == 0
    assert not partial.exists()


def test_a_new_file_has_the_usual_mode(tmp_path, legacy_file):
    assert convert(legacy_file, tmp_path / "out.pt") == 0
    assert (tmp_path / "out.pt").stat().st_mode == legacy_file.stat().st_mode


def test_a_name_too_long_for_a_partial_file(tmp_path, legacy_file):
    target = tmp_path / f"{'n' * 240}.pt"
    assert convert(legacy_file, target) == f"{target}: File name too long"
    assert names(tmp_path) == ["legacy.pt"]
