"""Checkpoint files with their spectral norms in another layout: .safetensors, and torch's own."""

from __future__ import annotations

import copy
import os
import re
import shutil
import warnings
from collections.abc import Callable
from errno import ENOENT
from importlib.util import find_spec
from io import BufferedWriter
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .entries import find_entries
from .state_dicts import convert_state_dict


class Contents(NamedTuple):
    """What a file holds: for .safetensors the tensors by name, and strings about them."""

    value: Any
    metadata: dict[str, str] | None = None


def convert_file(source: Path, target: Path, to: str) -> list[str]:
    """Write ``source`` to ``target`` with its spectral norms in the layout ``to``.

    Every dict that holds normalized weights is converted, however deep in other dicts it lies, and
    all else is kept. Tensors are read to the CPU. ``target`` comes into place when it is complete,
    so it may be ``source``.

    Returns:
        The names of the converted parameters, after those of the dicts that they lie in.

    Raises:
        ValueError: the file cannot be read without running code from it, has nothing to convert, or
            has an entry that :func:`snorm_triton.convert_state_dict` refuses.
        OSError: the file cannot be read, or ``target`` not written.
    """
    is_safetensors = source.suffix == ".safetensors"
    if is_safetensors != (target.suffix == ".safetensors"):
        raise ValueError(f"{target}: both files must be .safetensors, or neither")
    contents = _read_safetensors(source) if is_safetensors else _read_torch(source)
    conversion = _Conversion(to)
    value = conversion.of(contents.value, source.name)
    if not conversion.converted:
        have = f"those it has are in the layout {to!r}" if conversion.kept else "it has none"
        raise ValueError(f"{source}: no spectral norm to convert: {have}")
    write = _write_safetensors if is_safetensors else _write_torch
    _put_in_place(target.resolve(), lambda file: write(contents._replace(value=value), file))
    return conversion.converted


class _Conversion:
    """Goes through dicts of dicts, and keeps account."""

    def __init__(self, to: str) -> None:
        self.to = to
        self.converted: list[str] = []
        self.kept = 0
        self._done: dict[int, Any] = {}  # a dict that stands in two places does so afterwards

    def of(self, value: Any, where: str, path: str = "") -> Any:
        """``value`` itself where nothing in it is converted."""
        if not isinstance(value, dict):
            return value
        if id(value) in self._done:
            return self._done[id(value)]
        self._done[id(value)] = value  # as far as its own insides are concerned
        try:
            entries = find_entries(value)
            new: dict[Any, Any] = value
            if any(entry.is_legacy != (self.to == "legacy") for entry in entries):
                new = convert_state_dict(value, self.to)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        for entry in entries:
            if entry.is_legacy == (self.to == "legacy"):
                self.kept += 1
            else:
                self.converted.append(f"{path}{entry.prefix}{entry.name}")
        inside = {
            key: self.of(child, f"{where}[{key!r}]", f"{path}{key}: ") for key, child in new.items()
        }
        if any(inside[key] is not child for key, child in new.items()):
            if new is value:
                new = copy.copy(value)  # the attributes of an OrderedDict too: `_metadata`
            new.update(inside)
        self._done[id(value)] = new
        return new


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
    torch.save(contents.value, file)


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


def _check_readable(path: Path) -> None:
    """Raise Python's OSError, which names the file: what readers raise tells little of its kind."""
    with path.open("rb"):
        pass


def _write_safetensors(contents: Contents, file: BufferedWriter) -> None:
    from safetensors.torch import save

    file.write(save(contents.value, contents.metadata))


def _put_in_place(target: Path, write: Callable[[BufferedWriter], None]) -> None:
    """Write beside ``target``, on the same file system, and rename what is complete."""
    if not target.parent.is_dir():
        raise FileNotFoundError(ENOENT, os.strerror(ENOENT), str(target.parent))
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    opened = beside.open("xb")
    try:
        with opened as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, beside)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
