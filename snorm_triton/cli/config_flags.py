"""A flag for each option of a training run."""

import argparse
import dataclasses
from typing import Any, get_args, get_origin, get_type_hints

from ..gan.config import TrainingConfig

TRUE_OR_FALSE = argparse.BooleanOptionalAction


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """Add them to a parser; those that are not given are missing in what it returns."""
    group = parser.add_argument_group(
        "options", "each may stand in a TOML file, too: ema_decay = 0"
    )
    hints = get_type_hints(TrainingConfig)
    for option in dataclasses.fields(TrainingConfig):
        choices, default = option.metadata["choices"], option.default
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        group.add_argument(
            "--" + option.name.replace("_", "-"),
            default=argparse.SUPPRESS,
            help=option.metadata["help"]
            + (f": {', '.join(choices)}" if choices else "")
            + ("" if default is None else f" (default {shown})"),
            **_kind(hints[option.name], option.name),
        )


def given_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options whose flags were given."""
    names = [option.name for option in dataclasses.fields(TrainingConfig)]
    return {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}


def _kind(hint: Any, name: str) -> dict[str, Any]:
    """How argparse reads a flag of a type."""
    kind = next((part for part in get_args(hint) if part is not type(None)), hint)
    if get_origin(hint) is tuple:
        return {"type": float, "nargs": 2, "metavar": ("BETA1", "BETA2")}
    if kind is bool:
        return {"action": TRUE_OR_FALSE}
    return {"type": kind, "metavar": name.rpartition("_")[2].upper()}
