"""The notes on modules that ``state_dict()`` attaches as ``_metadata``."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

from .layouts import Entry

NOTE = "spectral_norm"  # what torch's legacy hook writes: {"weight.version": 1}
VERSION = 1


def declared_parameters(metadata: Mapping[str, Any]) -> Iterator[str]:
    """The qualified names of the parameters that torch's legacy hook has noted."""
    for module, local in metadata.items():
        for version in local.get(NOTE, {}):
            name = version.removesuffix(".version")
            yield f"{module}.{name}" if module else name


def convert_metadata(metadata: Mapping[str, Any], entries: list[Entry]) -> OrderedDict[str, Any]:
    """The notes with these entries in their other layout."""
    converted = OrderedDict((path, dict(local)) for path, local in metadata.items())
    for entry in entries:
        module = entry.prefix.removesuffix(".")
        parametrizations = entry.prefix + "parametrizations"
        below = (f"{parametrizations}.{entry.name}", f"{parametrizations}.{entry.name}.0")
        if entry.is_scaled and not entry.is_legacy:
            for path in below:
                converted.pop(path, None)
        if entry.is_scaled:  # of which torch's hook notes nothing
            continue
        local = converted.setdefault(module, {"version": 1})
        versions = dict(local.pop(NOTE, {}))
        if entry.is_legacy:
            versions.pop(f"{entry.name}.version", None)
            for path in (parametrizations, *below):
                converted.setdefault(path, {"version": 1})
        else:
            versions[f"{entry.name}.version"] = VERSION
            for path in below:
                converted.pop(path, None)
            if not any(path.startswith(parametrizations + ".") for path in converted):
                converted.pop(parametrizations, None)
        if versions:
            local[NOTE] = versions
    return converted
