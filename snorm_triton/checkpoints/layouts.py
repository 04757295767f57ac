"""The layouts by name, and the keys that a spectral norm has in each."""

from __future__ import annotations

from typing import NamedTuple

LAYOUTS = ("ours", "torch", "legacy")


def legacy_keys(prefix: str, name: str) -> tuple[str, str, str]:
    """The keys of the weight, u and v under the legacy hook."""
    return f"{prefix}{name}_orig", f"{prefix}{name}_u", f"{prefix}{name}_v"


def parametrized_keys(prefix: str, name: str, index: int = 0) -> tuple[str, str, str]:
    """The keys of the weight, u and v under the parametrization at ``index`` of its list."""
    path = f"{prefix}parametrizations.{name}"
    return f"{path}.original", f"{path}.{index}._u", f"{path}.{index}._v"


class Entry(NamedTuple):
    """A normalized parameter in a state dict: its module's prefix, as ``"0."``, and its name."""

    prefix: str
    name: str
    is_legacy: bool

    @property
    def path(self) -> str:
        return self.prefix + self.name

    @property
    def keys(self) -> tuple[str, str, str]:
        """The keys that it has."""
        keys = legacy_keys if self.is_legacy else parametrized_keys
        return keys(self.prefix, self.name)

    @property
    def converted_keys(self) -> tuple[str, str, str]:
        """The keys that it has in the other layout."""
        return self._replace(is_legacy=not self.is_legacy).keys
