"""Options from a preset, a TOML file and flags, and a TOML file of them."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .choices import check_choice
from .config import TrainingConfig
from .presets import PRESETS


def layered(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """One layer over the other: what a later one says stands.

    `steps` and `epochs` both say how long: one of them in a later layer replaces either.
    """
    options: dict[str, Any] = {}
    for layer in layers:
        if layer.keys() & {"steps", "epochs"}:
            options.pop("steps", None)
            options.pop("epochs", None)
        options |= layer
    return options


def make_config(
    flags: Mapping[str, Any], *, preset: str | None = None, file: Path | None = None
) -> TrainingConfig:
    """The config of a preset, over which a TOML file and then `flags` stand.

    The file may name the preset, as `preset = "A"`; one that is given here stands over it. Raises
    ValueError or TypeError for options that are wrong, OSError for a file that cannot be read.
    """
    in_file = {} if file is None else read_toml(file)
    in_preset = in_file.pop("preset", None)
    preset = preset if preset is not None else in_preset
    if preset is not None:
        check_choice("preset", preset, PRESETS)
    TrainingConfig.check_keys(in_file, str(file))
    return TrainingConfig(**layered(PRESETS[preset or "demo"], in_file, flags))


def read_toml(file: Path) -> dict[str, Any]:
    """The keys of a TOML file; ValueError where it is none."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no TOML file: {error}") from error


def to_toml(config: TrainingConfig) -> str:
    """The options as a TOML file; what is None has no line."""
    lines = (
        f"{key} = {_value(value)}" for key, value in asdict(config).items() if value is not None
    )
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    """A string, number, bool or list of these is the same in JSON and in TOML, for our values."""
    return json.dumps(value, ensure_ascii=False)
