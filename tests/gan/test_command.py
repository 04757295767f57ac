"""The command line: one line and a status for whatever is wrong, and nothing lost."""

import errno
import os
import signal
import tomllib

import pytest
import torch

from snorm_triton.checkpoints import placing
from snorm_triton.cli import main as command_line
from snorm_triton.cli import training
from snorm_triton.gan.checkpoint import Checkpoint
from snorm_triton.gan.journal import Journal
from snorm_triton.gan.trainer import Trainer

TINY = [
    *("--steps", "4", "--batch-size", "4", "--checkpoint-every", "2", "--no-evaluate"),
    *("--z-dim", "4", "--generator-channels", "4", "--discriminator-channels", "4"),
    *("--threads", "1", "--device", "cpu"),
]

pytestmark = pytest.mark.usefixtures("hasty_classifier")


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    monkeypatch.setattr(Journal, "draw", lambda self: None)


def train(folder, *arguments):
    return command_line.main(["train", *TINY, "--output", str(folder), *arguments])


def test_train_prints_and_saves_its_config_and_counts_parameters(tmp_path, capsys):
    assert train(tmp_path / "a", "--betas", "0.25", "0.5") == 0
    said = capsys.readouterr().out
    saved = (tmp_path / "a" / "config.toml").read_text()
    assert saved in said
    assert tomllib.loads(saved)["betas"] == [0.25, 0.5]
    assert "1,797 images of 1x8x8 in 10 classes" in said
    trainer = Trainer(Checkpoint(tmp_path / "a").config, training_data())
    count = sum(weight.numel() for weight in trainer.discriminator.network.parameters())
    assert f"discriminator {count:,}\n" in said


def training_data():
    from snorm_triton.gan.datasets import load

    return load("digits")


def test_its_saved_config_repeats_a_run(tmp_path):
    train(tmp_path / "a", "--loss", "bce")
    config = tmp_path / "a" / "config.toml"
    assert command_line.main(["train", "--config", str(config), "--output", f"{tmp_path}/b"]) == 0
    one, other = ((tmp_path / name / "metrics.csv").read_bytes() for name in "ab")
    assert one == other


BAD = {
    "unknown data": (["--data", "digts"], "did you mean 'digits'?"),
    "unknown preset": (["--preset", "notebok"], "did you mean 'notebook'?"),
    "unknown loss": (["--loss", "hing"], "did you mean 'hinge'?"),
    "unknown device": (["--device", "nowhere"], "device: nowhere is not there: "),
    "device not there": (["--device", "cuda:7"], "device: cuda:7 is not there: "),
    "seed": (["--seed", "-1"], "seed must be at least 0, got -1"),
    "no config": (["--config", "/missing.toml"], "/missing.toml: No such file or directory"),
    "no checkpoint": (["--resume", "/missing"], "output: --resume goes on with"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_a_line_and_makes_nothing(tmp_path, name):
    if name == "device not there" and torch.cuda.device_count() > 7:
        pytest.fail("this machine has the device that is not to be there")
    arguments, sentence = BAD[name]
    message = train(tmp_path / "a", *arguments)
    assert isinstance(message, str)
    assert sentence in message
    assert "\n" not in message
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "--sed", "1", "--los=hinge"], "there is no argument '--sed'; did you mean '--s"),
        (["train", "--steps", "many"], "argument --steps: invalid int value: 'many'"),
        (["trian"], "invalid choice: 'trian'"),
    ],
    ids=["flag", "number", "command"],
)
def test_what_cannot_be_parsed_is_a_line(capsys, arguments, sentence):
    with pytest.raises(SystemExit) as ended:
        command_line.main(arguments)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert sentence in said
    assert said.count("\n") == 1


def test_a_folder_that_holds_a_run_is_left_alone(tmp_path):
    train(tmp_path / "a")
    before = (tmp_path / "a" / "checkpoint.pt").read_bytes()
    assert f"--resume {tmp_path / 'a'} goes on with it" in str(train(tmp_path / "a"))
    assert (tmp_path / "a" / "checkpoint.pt").read_bytes() == before


def test_a_file_as_output_is_refused(tmp_path):
    (tmp_path / "file").touch()
    assert str(train(tmp_path / "file")) == f"output: {tmp_path / 'file'}: File exists"


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "find_spec", lambda module: None)
    assert "this needs matplotlib, tqdm: " in str(train(tmp_path / "a"))
    assert not (tmp_path / "a").exists()


def test_tensorboard_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("snorm_triton.gan.journal.find_spec", lambda module: None)
    assert str(train(tmp_path / "a", "--tensorboard")).startswith("tensorboard: the package is mi")


def test_events_for_tensorboard_hold_the_metrics(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert train(tmp_path / "a", "--tensorboard", "--record-every", "2") == 0
    events = EventAccumulator(str(tmp_path / "a" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("discriminator_loss")] == [1, 2, 4]
    assert "sigma/linear" in events.Tags()["scalars"]
    assert events.Tags()["images"] == ["samples"]


def at_step(monkeypatch, step, act):
    advance = Trainer.advance

    def advancing(self):
        losses = advance(self)
        if self.step == step:
            act()
        return losses

    monkeypatch.setattr(Trainer, "advance", advancing)


def test_an_interrupt_saves_and_ends_in_a_line(tmp_path, monkeypatch, capsys):
    at_step(monkeypatch, 3, lambda: signal.raise_signal(signal.SIGINT))
    assert train(tmp_path / "a") == 130
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"interrupted at step 3, saved: --resume {tmp_path / 'a'} goes on"
    assert command_line.main(["train", "--resume", str(tmp_path / "a")]) == 0
    assert Checkpoint(tmp_path / "a").step == 4


def test_a_full_disk_is_a_line_and_the_checkpoint_stays(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    at_step(monkeypatch, 3, lambda: monkeypatch.setattr(placing.os, "fsync", full))
    said = train(tmp_path / "a", "--steps", "6")
    assert said == f"{tmp_path}/a/checkpoint.pt: No space left on device"
    assert Checkpoint(tmp_path / "a").step == 2


def test_only_the_first_rank_speaks(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert train(tmp_path / "a", "--loss", "none") == 1


def test_the_demo_is_the_defaults_and_writes_over_an_earlier_one(tmp_path, capsys):
    arguments = ["demo", "--steps", "1", "--output", str(tmp_path / "demo")]
    assert command_line.main(arguments) == 0
    assert command_line.main(arguments) == 0
    said = capsys.readouterr().out
    assert str(tmp_path / "demo") in said.splitlines()[-1]
    assert "agreement" in said
    assert command_line.main([*arguments[:2], "0"]) == "steps must be positive, got 0"


def test_no_command_prints_help(capsys):
    assert command_line.main([]) == 0
    assert "train" in capsys.readouterr().out
