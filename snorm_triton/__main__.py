"""The command line: `python -m snorm_triton demo` and `convert-checkpoint`."""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile

import torch

from . import __version__
from .checkpoint import LAYOUTS
from .checkpoint_files import convert_file
from .gan.training import TrainingConfig

DEMO_PACKAGES = {"sklearn": "scikit-learn", "matplotlib": "matplotlib", "tqdm": "tqdm"}
"""What the extra `demo` installs: import name, distribution name."""


def positive_integer(text: str) -> int:
    """An int of at least 1, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m snorm_triton", description="Spectral normalization for PyTorch."
    )
    parser.add_argument("--version", action="version", version=f"snorm_triton {__version__}")
    commands = parser.add_subparsers(dest="command", title="commands")
    demo = commands.add_parser(
        "demo",
        help="train a small SN-ResNet GAN on handwritten digits and draw what it learns",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument("--output", type=Path, default=Path("demo-output"), help="folder to write to")
    demo.add_argument(
        "--steps", type=positive_integer, default=TrainingConfig.steps, help="generator steps"
    )
    demo.add_argument("--seed", type=int, default=0, help="seed of every random draw")
    demo.add_argument(
        "--normalization",
        choices=("snorm", "torch", "none"),
        default="snorm",
        help="of the discriminator: ours, torch's own, or none at all",
    )
    demo.add_argument("--device", default="cpu", help="where to train, as torch names it")
    demo.add_argument(
        "--threads",
        type=positive_integer,
        default=1,
        help="CPU threads: so small a model gains little from more, and loses on a busy machine",
    )
    convert = commands.add_parser(
        "convert-checkpoint",
        help="rename the spectral norms of a checkpoint from one layout of torch to the other",
        description="Reads tensors only, and runs nothing that a file brings along. OUT may be IN.",
    )
    convert.add_argument("source", type=Path, metavar="IN", help=".safetensors, or torch's format")
    convert.add_argument("target", type=Path, metavar="OUT", help="the same format")
    convert.add_argument(
        "--to",
        choices=LAYOUTS,
        required=True,
        help="ours and torch: parametrizations.weight.original; legacy: weight_orig",
    )
    return parser


def convert_checkpoint(arguments: argparse.Namespace) -> str | None:
    """Convert a file; what to say where it cannot be done."""
    try:
        converted = convert_file(arguments.source, arguments.target, arguments.to)
    except ValueError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename or arguments.target}: {error.strerror}"
    for name in converted:
        print(name)
    print(f"{len(converted)} converted to the layout {arguments.to!r} in {arguments.target}")
    return None


def demo(arguments: argparse.Namespace) -> str | None:
    """Run the demo; what to say where it cannot run."""
    missing = [name for module, name in DEMO_PACKAGES.items() if find_spec(module) is None]
    if missing:
        return f"the demo needs {', '.join(missing)}: pip install '.[demo]' in its checkout"
    try:
        torch.zeros((), device=arguments.device).item()
        torch.manual_seed(arguments.seed)
        arguments.output.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=arguments.output):
            pass
    except (RuntimeError, AssertionError) as error:
        return f"--device {arguments.device}: {error}"
    except ValueError as error:
        return f"--seed {arguments.seed}: {error}"
    except OSError as error:
        return f"--output {arguments.output}: {error.strerror}"
    from .gan.demo import run_demo

    torch.set_num_threads(arguments.threads)
    start = time.perf_counter()
    history = run_demo(
        arguments.output,
        replace(TrainingConfig(), steps=arguments.steps),
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


COMMANDS = {"demo": demo, "convert-checkpoint": convert_checkpoint}


def main(argv: Sequence[str] | None = None) -> int | str:
    """Run a command; the exit status, or the message to fail with."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help()
        return 0
    try:
        return COMMANDS[arguments.command](arguments) or 0
    except KeyboardInterrupt:
        return "interrupted: nothing was written"


if __name__ == "__main__":
    sys.exit(main())
