"""`demo`: a small GAN trained on handwritten digits."""

import argparse
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile

import torch

from ..gan.training import NORMALIZATIONS, TrainingConfig

PACKAGES = {"sklearn": "scikit-learn", "matplotlib": "matplotlib", "tqdm": "tqdm"}
"""What the extra `demo` installs: import name, distribution name."""


def positive_integer(text: str) -> int:
    """An int of at least 1, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def add_to(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    parser = add_parser(
        "demo",
        help="train a small SN-ResNet GAN on handwritten digits and draw what it learns",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--output", type=Path, default=Path("demo-output"), help="folder to write to"
    )
    parser.add_argument(
        "--steps", type=positive_integer, default=TrainingConfig.steps, help="generator steps"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of every random draw")
    parser.add_argument(
        "--normalization",
        choices=NORMALIZATIONS,
        default="snorm",
        help="of the discriminator: ours, torch's own, or none at all",
    )
    parser.add_argument("--device", default="cpu", help="where to train, as torch names it")
    parser.add_argument(
        "--threads",
        type=positive_integer,
        default=1,
        help="CPU threads: so small a model gains little from more, and loses on a busy machine",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> str | None:
    """Run the demo; a sentence where it cannot run."""
    obstacle = _obstacle(arguments)
    if obstacle is not None:
        return obstacle
    from ..gan.demo import run_demo

    torch.set_num_threads(arguments.threads)
    start = time.perf_counter()
    history = run_demo(
        arguments.output,
        TrainingConfig(steps=arguments.steps),
        normalization=arguments.normalization,
        seed=arguments.seed,
        device=arguments.device,
    )
    last = history.records[-1]
    print(f"{last.step} steps in {time.perf_counter() - start:.0f} s")
    print(f"largest singular value of a discriminator weight in use: {last.largest_sigma:.3f}")
    print(f"generated digits that a classifier of real ones reads as asked: {last.agreement:.0%}")
    print(f"samples.png, sigma.png and metrics.csv are in {arguments.output.resolve()}")
    return None


def _obstacle(arguments: argparse.Namespace) -> str | None:
    """The first package, device, seed or folder that the demo cannot do with, in a sentence."""
    missing = [name for module, name in PACKAGES.items() if find_spec(module) is None]
    if missing:
        return f"the demo needs {', '.join(missing)}: pip install '.[demo]' in its checkout"
    try:
        torch.zeros((), device=arguments.device).item()
        torch.manual_seed(arguments.seed)
        arguments.output.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=arguments.output):
            return None
    except (RuntimeError, AssertionError) as error:
        return f"--device {arguments.device}: {error}"
    except ValueError as error:
        return f"--seed {arguments.seed}: {error}"
    except OSError as error:
        return f"--output {arguments.output}: {error.strerror}"
