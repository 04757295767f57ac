"""A run that was ended anywhere goes on as if it had not been: every bit of metrics and state."""

import errno
import multiprocessing
import os
import signal
import threading

import pytest
import torch

from snorm_triton.checkpoints import placing
from snorm_triton.gan import TrainingConfig, fit_to_data
from snorm_triton.gan.checkpoint import Checkpoint
from snorm_triton.gan.journal import Journal
from snorm_triton.gan.metrics import MetricsFile
from snorm_triton.gan.run import Run
from tiny_runs import TINY, tiny_images, tiny_run
from worlds import PRELOADED

STEPS = 6


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Leave out the figures, which take most of the time: they follow from what is compared."""
    monkeypatch.setattr(Journal, "draw", lambda self: None)


def equal(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def outcome_of(folder):
    """All that a run has come to: its state, its metrics, its last picture of samples."""
    pictures = sorted((folder / "samples").iterdir())
    return {
        "state": Checkpoint(folder).state,
        "metrics": (folder / "metrics.csv").read_bytes(),
        "samples": [picture.read_bytes() for picture in pictures],
    }


def undisturbed(folder, **options):
    tiny_run(folder, steps=STEPS, **options).train(progress=False)
    return outcome_of(folder)


def resume(folder):
    checkpoint = Checkpoint(folder)
    Run(*fit_to_data(checkpoint.config, tiny_images()), folder, checkpoint=checkpoint).train(
        progress=False
    )
    return outcome_of(folder)


def stop_at(run, step, act):
    """Let `act` happen after a step, before what the run does about it."""
    advance = run.trainer.advance

    def advancing():
        losses = advance()
        if run.trainer.step == step:
            act()
        return losses

    run.trainer.advance = advancing


MODES = [
    {},
    {"model": "sn-dcgan", "loss": "bce", "betas": (0.5, 0.999)},
    {"loss": "wgan-gp", "normalization": "weight-norm", "discriminator_steps": 2},
    {"normalization": "torch", "autocast": "float16"},
    {"normalization": "hook", "evaluate": True, "schedule": "constant"},
]


@pytest.mark.parametrize("options", MODES, ids=str)
def test_an_interrupted_run_is_saved_and_goes_on_bit_for_bit(tmp_path, options):
    number = signal.SIGTERM if options else signal.SIGINT
    run = tiny_run(tmp_path / "a", steps=STEPS, **options)
    stop_at(run, 3, lambda: signal.raise_signal(number))
    ended = run.train(progress=False)
    assert (ended.step, ended.signal) == (3, number)
    assert equal(resume(tmp_path / "a"), undisturbed(tmp_path / "b", **options))


class Killed(BaseException):
    """Stands for what ends a process: nothing catches it."""


MOMENTS = ["at a step", "writing a row", "writing a picture", "writing a checkpoint"]


def die_at(monkeypatch, moment, die):
    """Half of what is being written is there then."""
    if moment == "writing a row":
        add = MetricsFile.add

        def add_half(self, record):
            add(self, record)
            if record.step == 5:
                os.truncate(self.path, self.path.stat().st_size - 20)
                die()

        monkeypatch.setattr(MetricsFile, "add", add_half)
        return
    wanted = {"writing a picture": ".png", "writing a checkpoint": ".pt"}.get(moment)
    fsync, written = os.fsync, []

    def fsync_or_die(descriptor):
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        written.append(name.endswith(f"{wanted}.{name[-16:-8]}.partial") or wanted in name)
        if written[-1] and sum(written) == 2:
            os.truncate(name, os.stat(name).st_size // 2)
            die()
        fsync(descriptor)

    monkeypatch.setattr(placing.os, "fsync", fsync_or_die)


def run_until_killed(folder, moment):
    """In a process of its own, which ends before it draws."""
    run = tiny_run(folder, steps=STEPS, picture_every=2)

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    if moment == "at a step":
        stop_at(run, 5, die)
    else:
        die_at(pytest.MonkeyPatch(), moment, die)
    run.train(progress=False)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, moment):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=run_until_killed, args=(tmp_path / "a", moment))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    before = Checkpoint(tmp_path / "a").step
    assert before == (2 if moment == "writing a picture" else 0 if "checkpoint" in moment else 4)
    after = resume(tmp_path / "a")
    assert equal(after, undisturbed(tmp_path / "b", picture_every=2))
    assert not list((tmp_path / "a").glob(".*.partial"))


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    run = tiny_run(tmp_path, steps=STEPS)

    def fail():
        def full(descriptor):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(placing.os, "fsync", full)

    stop_at(run, 4, fail)
    with pytest.raises(OSError, match=r"No space left on device: .*checkpoint.pt'$"):
        run.train(progress=False)
    monkeypatch.undo()
    assert Checkpoint(tmp_path).step == 2


@pytest.fixture
def interruptible():
    """Ctrl-C interrupts Python, which a shell that started it in the background has ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_second_interrupt_ends_at_once(tmp_path):
    run = tiny_run(tmp_path, steps=STEPS)

    def interrupt_twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    stop_at(run, 3, interrupt_twice)
    with pytest.raises(KeyboardInterrupt):
        run.train(progress=False)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert Checkpoint(tmp_path).step == 2


def test_a_run_may_be_made_longer(tmp_path):
    options = {"schedule": "constant"}
    tiny_run(tmp_path / "a", **options | {"steps": 3}).train(progress=False)
    checkpoint = Checkpoint(tmp_path / "a")
    longer, data = fit_to_data(TrainingConfig(**TINY | options | {"steps": 6}), tiny_images())
    Run(longer, data, tmp_path / "a", checkpoint=checkpoint).train(progress=False)
    expected = undisturbed(tmp_path / "b", **options)
    assert equal(outcome_of(tmp_path / "a")["metrics"], expected["metrics"])
    assert equal(outcome_of(tmp_path / "a")["state"]["trainer"], expected["state"]["trainer"])


def test_other_options_other_images_and_fewer_steps_are_refused(tmp_path):
    tiny_run(tmp_path).train(progress=False)
    checkpoint = Checkpoint(tmp_path)
    for options, message in (
        ({"loss": "bce"}, "loss: .*checkpoint.pt is of a run with loss='hinge', and not 'bce'"),
        ({"steps": 3}, "steps: .*checkpoint.pt is at step 6, and not at 3 or before"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny_run(tmp_path, checkpoint, **options)
    config, data = fit_to_data(TrainingConfig(**TINY), tiny_images(count=12))
    with pytest.raises(ValueError, match=r"data: .*checkpoint.pt is of a run on other images"):
        Run(config, data, tmp_path, checkpoint=checkpoint)


def test_a_state_of_other_networks_is_refused(tmp_path):
    tiny_run(tmp_path).train(progress=False)
    checkpoint = Checkpoint(tmp_path)
    del checkpoint.state["trainer"]["generator"]["network"]["linear.weight"]
    with pytest.raises(ValueError, match=r"is of another model: .*linear.weight") as caught:
        tiny_run(tmp_path, checkpoint)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_checkpoint_are_refused(tmp_path):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "model.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    for path, message in (
        (tmp_path / "model.pt", "model.pt is no checkpoint of a training run"),
        (tmp_path / "text.pt", "text.pt is no file of tensors"),
        (tmp_path / "missing", "resume: there is no folder .*missing"),
        (tmp_path, "holds no checkpoint.pt"),
    ):
        with pytest.raises(ValueError, match=message):
            Checkpoint(path)


def test_interrupts_are_left_alone_outside_the_main_thread(tmp_path):
    outcomes = []
    run = tiny_run(tmp_path, steps=1)
    thread = threading.Thread(target=lambda: outcomes.append(run.train(progress=False)))
    thread.start()
    thread.join()
    assert outcomes[0].step == 1
