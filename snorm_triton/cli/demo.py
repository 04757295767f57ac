"""`demo`: a small GAN trained on handwritten digits, `train` with a few of its flags."""

import argparse
from collections.abc import Callable
from pathlib import Path

from ..gan.config import DEFAULT_STEPS
from ..gan.config_files import make_config
from .training import PACKAGES, Status, in_a_sentence, missing_packages, train_in

OPTIONS = ("steps", "seed", "normalization", "device", "threads")


def add_to(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    parser = add_parser(
        "demo",
        help="train a small SN-ResNet GAN on handwritten digits and draw what it learns",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--output", type=Path, default=Path("demo-output"), help="folder to write to"
    )
    parser.add_argument("--steps", type=int, default=DEFAULT_STEPS, help="generator steps")
    parser.add_argument("--seed", type=int, default=0, help="seed of every random draw")
    parser.add_argument("--normalization", default="ours", help="of the discriminator, as of train")
    parser.add_argument("--device", default="cpu", help="where to train, as torch names it")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="CPU threads: so small a model gains little from more, and loses on a busy machine",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> Status:
    """Run the demo, over an earlier one in the same folder; a sentence where it cannot run."""
    options = {name: getattr(arguments, name) for name in OPTIONS}
    return missing_packages({"sklearn": "scikit-learn", **PACKAGES}) or in_a_sentence(
        lambda: train_in(arguments.output, make_config(options, preset="demo"))
    )
