"""Docstrings and signatures as the site shows them.

Sphinx's roles become links to what the site documents, or code; names of choices the choices.
"""

from __future__ import annotations

import re
from typing import Any, get_args

import griffe

import snorm_triton
from snorm_triton import lipschitz
from snorm_triton.checkpoints.layouts import Layout, Norm, Target
from snorm_triton.lipschitz.bound import Method
from snorm_triton.ops.dispatch import BackendName
from snorm_triton.ops.orthogonal_maps import MapName
from snorm_triton.parametrizations.options import Operator, Policy

ROLE = re.compile(r":\w+:`~?(?P<target>[^`]+)`")
PLACES = {name: f"snorm_triton.{name}" for name in snorm_triton.__all__}
PLACES |= {name: f"snorm_triton.lipschitz.{name}" for name in lipschitz.__all__}
PLACES |= {"spectral_normalize": "snorm_triton.functional.spectral_normalize"}
PAGELESS = {"__version__", "functional", "lipschitz"}
CHOICES = {
    "BackendName": BackendName,
    "Layout": Layout,
    "MapName": MapName,
    "Method": Method,
    "Norm": Norm,
    "Operator": Operator,
    "Policy": Policy,
    "Target": Target,
}
CHOICE = re.compile(rf"\b({'|'.join(CHOICES)})\b")


class Roles(griffe.Extension):
    """Rewrites every docstring and every signature as it is collected."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            text = ROLE.sub(markdown, obj.docstring.value)
            # Of which Google's style knows the plural alone.
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", text, flags=re.M)

    def on_function(self, *, func: griffe.Function, **kwargs: Any) -> None:
        for parameter in func.parameters:
            annotation = str(parameter.annotation)
            if CHOICE.search(annotation):
                parameter.annotation = CHOICE.sub(choices, annotation)


def choices(name: re.Match[str]) -> str:
    """The strings that may be chosen."""
    return f"Literal[{', '.join(map(repr, get_args(CHOICES[name[0]])))}]"


def markdown(role: re.Match[str]) -> str:
    """What stands in place of a role."""
    target = role["target"]
    name = target.rpartition(".")[2]
    place = PLACES.get(name)
    if place is None or name in PAGELESS or target not in (name, place):
        return f"`{target}`"
    return f"[`{name}`][{place}]"
