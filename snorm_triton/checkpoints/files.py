"""Checkpoint files with their norms in another layout."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from .entries import find_entries
from .formats import SAFETENSORS, TORCH
from .layouts import Layout, Norm
from .placing import check_target, put_in_place
from .state_dicts import convert_state_dict


def convert_file(source: Path, target: Path, to: Layout, norm: Norm = "spectral_norm") -> list[str]:
    """Write ``source`` to ``target`` with its norms of the kind ``norm`` in the layout ``to``.

    Every dict that holds normalized weights is converted, however deep in other dicts it lies, and
    everything else is kept. Tensors are read to the CPU. ``target`` comes into place when it is
    complete, so it may be ``source``.

    Returns:
        The names of the converted parameters, after those of the dicts that they lie in.

    Raises:
        ValueError: a file is a folder, a device or a pipe, ``source`` cannot be read without
            running code from it, has nothing to convert, has dicts too deep in one another, or has
            an entry that :func:`snorm_triton.convert_state_dict` refuses.
        OSError: ``source`` cannot be read, or ``target`` not written.
    """
    is_safetensors = source.suffix == ".safetensors"
    if is_safetensors != (target.suffix == ".safetensors"):
        raise ValueError(f"{target}: both files must be .safetensors, or neither")
    check_target(target)
    file_format = SAFETENSORS if is_safetensors else TORCH
    contents = file_format.read(source)
    conversion = _Conversion(to, norm)
    try:
        contents = contents._replace(value=conversion.of(contents.value, source.name))
        if not conversion.converted:
            have = f"those it has are in the layout {to!r}" if conversion.kept else "it has none"
            raise ValueError(f"{source}: no {norm.replace('_', ' ')} to convert: {have}")
        put_in_place(target, lambda file: file_format.write(contents, file))
    except RecursionError as error:
        raise ValueError(f"{source} holds dicts or lists too deep in one another") from error
    return conversion.converted


class _Conversion:
    """Goes through dicts of dicts, and keeps account."""

    def __init__(self, to: Layout, norm: Norm) -> None:
        self.to = to
        self.norm = norm
        self.converted: list[str] = []
        self.kept = 0
        self._done: dict[int, Any] = {}  # a dict that stands in two places does so afterwards

    def of(self, value: Any, where: str, path: str = "") -> Any:
        """A copy with every dict converted, or ``value`` itself where it is no dict."""
        if not isinstance(value, dict):
            return value
        if id(value) in self._done:
            return self._done[id(value)]
        try:
            entries = find_entries(value, self.norm)
            others = [entry for entry in entries if entry.is_legacy != (self.to == "legacy")]
            # A copy has the attributes of an OrderedDict, too: `_metadata`.
            new = copy.copy(value)
            if others:
                new = convert_state_dict(value, self.to, norm=self.norm)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        self._done[id(value)] = new
        self.converted += [path + entry.path for entry in others]
        self.kept += len(entries) - len(others)
        for key, child in new.items():
            new[key] = self.of(child, f"{where}[{key!r}]", f"{path}{key}: ")
        return new
