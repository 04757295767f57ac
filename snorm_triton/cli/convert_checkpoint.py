"""`convert-checkpoint`: a checkpoint file in another layout."""

import argparse
from collections.abc import Callable
from pathlib import Path

from ..checkpoints.files import convert_file
from ..checkpoints.layouts import LAYOUTS, NORMS


def add_to(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    parser = add_parser(
        "convert-checkpoint",
        help="rename the norms of a checkpoint from one layout of torch to the other",
        description="Reads tensors only, and runs nothing that a file brings along. OUT may be IN.",
    )
    parser.add_argument("source", type=Path, metavar="IN", help=".safetensors, or torch's format")
    parser.add_argument("target", type=Path, metavar="OUT", help="the same format")
    parser.add_argument(
        "--to",
        choices=LAYOUTS,
        required=True,
        help="ours and torch: parametrizations.weight.original...; legacy: weight_orig, weight_g",
    )
    parser.add_argument(
        "--norm", choices=NORMS, default=NORMS[0], help="which; default %(default)s"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> str | None:
    """Convert a file; a sentence where it cannot be done."""
    try:
        converted = convert_file(arguments.source, arguments.target, arguments.to, arguments.norm)
    except ValueError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename or arguments.target}: {error.strerror}"
    for name in converted:
        print(name)
    print(f"{len(converted)} converted to the layout {arguments.to!r} in {arguments.target}")
    return None
