"""The formats of checkpoint files, torch's own and .safetensors: how each is read and written."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from io import BufferedWriter
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .placing import check_is_file


class Contents(NamedTuple):
    """What a file holds: for .safetensors the tensors by name, and strings about them."""

    value: Any
    metadata: dict[str, str] | None = None


class Format(NamedTuple):
    read: Callable[[Path], Contents]
    write: Callable[[Contents, BufferedWriter], None]


def _read_torch(path: Path) -> Contents:
    _check_readable(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # of what is about to be refused
            return Contents(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # whatever is in the file, it can go wrong in as many ways
        holds = re.search(r"GLOBAL ([\w.]+)", str(error))
        sentence = " ".join(str(error).partition(". ")[0].split())
        reason = f"it holds {holds[1]}" if holds else f"{type(error).__name__} {sentence}".strip()
        raise ValueError(
            f"{path} is no file of tensors that torch.load(weights_only=True) takes: {reason}"
        ) from error


def _write_torch(contents: Contents, file: BufferedWriter) -> None:
    try:
        torch.save(contents.value, file)
    except RuntimeError as error:  # of the archive, which is closed after a write has failed
        if isinstance(error.__context__, OSError | KeyboardInterrupt):
            raise error.__context__ from None
        raise


def _read_safetensors(path: Path) -> Contents:
    if find_spec("safetensors") is None:
        raise ValueError(f"{path} needs the package safetensors: pip install safetensors")
    from safetensors import SafetensorError, safe_open

    _check_readable(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return Contents(tensors, file.metadata())
    except SafetensorError as error:
        raise ValueError(f"{path} is no .safetensors file: {error}") from error


def _write_safetensors(contents: Contents, file: BufferedWriter) -> None:
    from safetensors.torch import save

    file.write(save(contents.value, contents.metadata))


def _check_readable(path: Path) -> None:
    """Raise Python's OSError, which names the file: what readers raise tells little of its kind."""
    check_is_file(path)
    with path.open("rb"):
        pass


TORCH = Format(_read_torch, _write_torch)
SAFETENSORS = Format(_read_safetensors, _write_safetensors)
