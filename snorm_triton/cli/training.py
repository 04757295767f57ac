"""What the commands that train have in common: obstacles, what they print, how they end."""

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

import torch

from ..gan.checkpoint import Checkpoint
from ..gan.config import TrainingConfig
from ..gan.config_files import to_toml
from ..gan.ranks import Ranks, joined_ranks

if TYPE_CHECKING:
    from ..gan.run import Outcome, Run

PACKAGES = {"matplotlib": "matplotlib", "tqdm": "tqdm"}
"""What every training needs of the extra `demo`: import name, distribution name."""

Status = str | int | None
"""A sentence to fail with, an exit status, or None for success."""


def missing_packages(packages: dict[str, str]) -> str | None:
    """Which packages are missing, in a sentence."""
    missing = [name for module, name in packages.items() if find_spec(module) is None]
    if missing:
        return f"this needs {', '.join(missing)}: pip install '.[demo]' in its checkout"
    return None


def in_a_sentence(command: Callable[[], Status]) -> Status:
    """What `command` returns, or what it raised of bad input and of files, as a sentence.

    Of the ranks of torchrun only the first says it.
    """
    try:
        return command()
    except (ValueError, TypeError) as error:
        sentence = str(error)
    except OSError as error:
        sentence = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    return 1 if int(os.environ.get("RANK", 0)) else sentence


def train_in(
    folder: Path,
    config: TrainingConfig,
    checkpoint: Checkpoint | None = None,
) -> Status:
    """Train, and print what there is to say, on the first of the ranks."""
    _check_device(config)
    with joined_ranks(config.device or "cpu") as ranks:
        return _train(folder, config, checkpoint, ranks)


def _train(
    folder: Path, config: TrainingConfig, checkpoint: Checkpoint | None, ranks: Ranks
) -> Status:
    from ..gan.datasets import load
    from ..gan.networks import fit_to_data
    from ..gan.run import Run

    config, data = fit_to_data(config, load(config.data, config.image_size))
    check_folder(folder)
    run = Run(config, data, folder, checkpoint=checkpoint, ranks=ranks)
    if ranks.is_first:
        print(to_toml(config) + _description(run), flush=True)
    outcome = run.train()
    if outcome.signal:
        if ranks.is_first:
            print(f"interrupted at step {outcome.step}, saved: --resume {folder} goes on")
        return 128 + outcome.signal
    if ranks.is_first:
        print(_summary(run, outcome))
    return None


def _check_device(config: TrainingConfig) -> None:
    try:
        torch.zeros((), device=config.device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device: {config.device} is not there: {reason}") from error


def check_folder(folder: Path) -> None:
    """Make a folder to write to; OSError, which names it, where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            return
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"output: {folder}") from error


def _description(run: "Run") -> str:
    """The images, and how many parameters train on them."""
    generator, discriminator = (
        sum(parameter.numel() for parameter in player.network.parameters())
        for player in (run.trainer.generator, run.trainer.discriminator)
    )
    shape = "x".join(map(str, run.data.shape))
    judge = "\nfirst, a classifier of them to judge samples by" if run.config.evaluate else ""
    return (
        f"{len(run.data):,} images of {shape} in {run.data.num_classes} classes\n"
        f"parameters: generator {generator:,}, discriminator {discriminator:,}"
        f"{judge}"
    )


def _summary(run: "Run", outcome: "Outcome") -> str:
    """What came of a run."""
    lines = [f"{outcome.step} steps, {outcome.steps_per_second:.1f} a second"]
    record, classifier = outcome.record, run.journal.classifier
    if record is not None:
        losses = (
            f"discriminator {record.discriminator_loss:.3f}, generator {record.generator_loss:.3f}"
        )
        lines.append(f"losses: {losses}")
        sigma = f"{record.largest_sigma:.3f}"
        lines.append(f"largest singular value of a discriminator weight in use: {sigma}")
        if classifier is not None:
            quality = ", ".join(
                f"{name.replace('_', ' ')} {value:.3g}" for name, value in record.quality.items()
            )
            judge = (
                f"a classifier of real ones, right of {classifier.accuracy:.1%} of those held out"
            )
            lines.append(f"samples, judged by {judge}: {quality}")
    lines.append(f"samples.png, sigma.png and metrics.csv are in {run.folder.resolve()}")
    return "\n".join(lines)
