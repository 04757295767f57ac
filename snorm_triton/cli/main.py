"""The parser, and what becomes of a command: an exit status, or a sentence on stderr."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from .. import __version__
from ..gan.choices import nearest
from . import compare, convert_checkpoint, demo, doctor, sigmas, train

COMMANDS = (train, demo, compare, convert_checkpoint, sigmas, doctor)
INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, with the flag that may have been meant."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; --help lists what there is\n")

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        """As argparse's, but a command refuses flags that it does not know itself."""
        arguments, unknown = super().parse_known_args(*args, **kwargs)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            hint = nearest(unknown[0].partition("=")[0], flags)
            self.error(f"there is no argument {unknown[0]!r}{hint}")
        return arguments, unknown


def main(argv: Sequence[str] | None = None) -> int | str:
    """Run a command; the exit status, or the message to fail with."""
    parser = Parser(
        prog="python -m snorm_triton", description="Spectral normalization for PyTorch."
    )
    parser.add_argument("--version", action="version", version=f"snorm_triton {__version__}")
    commands = parser.add_subparsers(title="commands")
    for command in COMMANDS:
        command.add_to(commands.add_parser)
    arguments = parser.parse_args(argv)
    if "run" not in arguments:
        parser.print_help()
        return 0
    try:
        outcome: str | int | None = arguments.run(arguments)
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return INTERRUPTED
    return outcome or 0
