"""The layouts by name, and the keys that a norm has in each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

Layout = Literal["ours", "torch", "legacy"]
LAYOUTS = get_args(Layout)
Target = Literal["ours", "torch"]  # what a module is turned into, in place
Norm = Literal["spectral_norm", "weight_norm"]
NORMS = get_args(Norm)


def legacy_keys(prefix: str, name: str) -> tuple[str, str, str]:
    """The keys of the weight, u and v under the legacy hook."""
    return f"{prefix}{name}_orig", f"{prefix}{name}_u", f"{prefix}{name}_v"


def parametrized_keys(prefix: str, name: str) -> tuple[str, str, str]:
    """The keys of the weight, u and v under a parametrization, the first of its list."""
    path = f"{prefix}parametrizations.{name}"
    return f"{path}.original", f"{path}.0._u", f"{path}.0._v"


def legacy_scaled_keys(prefix: str, name: str) -> tuple[str, str]:
    """The keys of g and v under the legacy hook of weight norm."""
    return f"{prefix}{name}_g", f"{prefix}{name}_v"


def parametrized_scaled_keys(prefix: str, name: str) -> tuple[str, str]:
    """The keys of g and v under the parametrization."""
    path = f"{prefix}parametrizations.{name}"
    return f"{path}.original0", f"{path}.original1"


class Entry(NamedTuple):
    """A normalized parameter in a state dict: its module's prefix, as ``"0."``, and its name.

    ``is_scaled`` of a weight norm; else it is a spectral norm.
    """

    prefix: str
    name: str
    is_legacy: bool
    is_scaled: bool = False

    @property
    def path(self) -> str:
        return self.prefix + self.name

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that it has."""
        keys = _KEYS[self.is_legacy, self.is_scaled]
        return keys(self.prefix, self.name)

    @property
    def converted_keys(self) -> tuple[str, ...]:
        """The keys that it has in the other layout."""
        return self._replace(is_legacy=not self.is_legacy).keys


_KEYS: dict[tuple[bool, bool], Callable[[str, str], tuple[str, ...]]] = {
    (True, False): legacy_keys,
    (False, False): parametrized_keys,
    (True, True): legacy_scaled_keys,
    (False, True): parametrized_scaled_keys,
}


def rename_legacy(
    state_dict: dict[str, Any], prefix: str, name: str, path: str, *, has_vectors: bool
) -> dict[str, str]:
    """Give an entry of the legacy hook the keys of the parametrization at ``path``, in place.

    Returns:
        The new keys with the old ones; none where there is no such entry, or half of one, which is
        left for torch to name.
    """
    old = legacy_keys(prefix, name)
    new = (f"{prefix}parametrizations.{name}.original", f"{path}._u", f"{path}._v")
    if new[0] in state_dict or not {old[0], old[1]} <= state_dict.keys():
        return {}
    renamed = {n: o for n, o in zip(new, old, strict=True) if o in state_dict}
    for n, o in renamed.items():
        state_dict[n] = state_dict.pop(o)
    if not has_vectors:  # a 1-D parameter: its norm needs neither
        for key in new[1:]:
            state_dict.pop(key, None)
    return renamed
