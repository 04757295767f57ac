"""The parser, and what becomes of a command: an exit status, or a sentence on stderr."""

import argparse
from collections.abc import Sequence

from .. import __version__
from . import convert_checkpoint, demo, doctor, sigmas


def main(argv: Sequence[str] | None = None) -> int | str:
    """Run a command; the exit status, or the message to fail with."""
    parser = argparse.ArgumentParser(
        prog="python -m snorm_triton", description="Spectral normalization for PyTorch."
    )
    parser.add_argument("--version", action="version", version=f"snorm_triton {__version__}")
    commands = parser.add_subparsers(title="commands")
    for command in (demo, convert_checkpoint, sigmas, doctor):
        command.add_to(commands.add_parser)
    arguments = parser.parse_args(argv)
    if "run" not in arguments:
        parser.print_help()
        return 0
    try:
        message: str | None = arguments.run(arguments)
    except KeyboardInterrupt:
        return "interrupted: nothing was written"
    return message or 0
