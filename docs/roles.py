"""Sphinx's roles in docstrings, as Markdown: a link to what the site documents, else code."""

from __future__ import annotations

import re
from typing import Any

import griffe

import snorm_triton
from snorm_triton import lipschitz

ROLE = re.compile(r":\w+:`~?(?P<target>[^`]+)`")
PLACES = {name: f"snorm_triton.{name}" for name in snorm_triton.__all__}
PLACES |= {name: f"snorm_triton.lipschitz.{name}" for name in lipschitz.__all__}
PLACES |= {"spectral_normalize": "snorm_triton.functional.spectral_normalize"}
PAGELESS = {"__version__", "functional", "lipschitz"}


class Roles(griffe.Extension):
    """Rewrites every docstring as it is collected."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            text = ROLE.sub(markdown, obj.docstring.value)
            # Of which Google's style knows the plural alone.
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", text, flags=re.M)


def markdown(role: re.Match[str]) -> str:
    """What stands in place of a role."""
    target = role["target"]
    name = target.rpartition(".")[2]
    place = PLACES.get(name)
    if place is None or name in PAGELESS or target not in (name, place):
        return f"`{target}`"
    return f"[`{name}`][{place}]"
