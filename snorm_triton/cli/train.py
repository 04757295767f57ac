"""`train`: a GAN on images of yours, as a config says."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

from ..gan.checkpoint import FILE, Checkpoint
from ..gan.config_files import make_config
from ..gan.presets import PRESETS
from .config_flags import add_config_flags, given_options
from .training import PACKAGES, Status, in_a_sentence, missing_packages, train_in

DESCRIPTION = """
Trains in a folder: config.toml, metrics.csv, samples.png, sigma.png, pictures of the same noise in
samples/, and checkpoint.pt, from which --resume goes on. Under torchrun each rank takes its share
of the batch.
"""


def add_to(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    parser = add_parser(
        "train", help="train a GAN on digits, or on images of yours", description=DESCRIPTION
    )
    parser.add_argument("--preset", help=f"options with a name: {', '.join(PRESETS)}")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="TOML",
        help="options; flags stand over them, they over PRESET",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="of the run; by default the next of runs/1, 2"
    )
    parser.add_argument(
        "--resume", type=Path, metavar="RUN", help="go on from the checkpoint of this folder"
    )
    add_config_flags(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> Status:
    """Train; a sentence where it cannot be done, 128 + the signal that ended it."""
    command = _start if arguments.resume is None else _resume
    return missing_packages(PACKAGES) or in_a_sentence(lambda: command(arguments))


def _start(arguments: argparse.Namespace) -> Status:
    config = make_config(given_options(arguments), preset=arguments.preset, file=arguments.config)
    folder: Path = arguments.output or _next_folder()
    if (folder / FILE).exists():
        raise ValueError(f"output: {folder} holds a run: --resume {folder} goes on with it")
    return train_in(folder, config)


def _resume(arguments: argparse.Namespace) -> Status:
    for name in ("preset", "config", "output"):
        if getattr(arguments, name) is not None:
            raise ValueError(
                f"{name}: --resume goes on with the config and in the folder of its run"
            )
    checkpoint = Checkpoint(arguments.resume)
    flags = given_options(arguments)
    if "epochs" in flags:
        flags = {"steps": None} | flags
    config = replace(checkpoint.config, **flags)
    return train_in(checkpoint.folder, config, checkpoint)


def _next_folder() -> Path:
    """The first of runs/1, runs/2 and so on that is not there."""
    return next(path for path in (Path("runs") / str(n) for n in count(1)) if not path.exists())
