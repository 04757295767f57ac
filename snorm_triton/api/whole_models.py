"""Normalize the layers of a whole model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, Unpack

from torch import nn

from ..modules import whole_model
from ..modules.spectral_norm import SpectralNormWrapper
from ..modules.wrapper import Wrapper
from ..ops.convolution_geometry import CONVOLUTIONS, TRANSPOSED
from ..parametrizations.options import Options
from ..reports import check_model, constrained
from ..selection import SPECTRAL_NORM, Constraint, Selection, left_out

M = TypeVar("M", bound=nn.Module)
Types = type[nn.Module] | Sequence[type[nn.Module]]


def apply_spectral_norm(
    model: M,
    *,
    names: str | Sequence[str] = ("weight",),
    include_types: Types | None = None,
    exclude_types: Types = (),
    exclude_names: str | Sequence[str] = (),
    predicate: Callable[[str, nn.Module], bool] | None = None,
    foreach: bool | None = None,
    **options: Unpack[Options],
) -> M:
    """Normalize the ``weight`` of every layer of a model, but those normalized already, by anyone.

    On a GPU the weights are normalized together at the start of the model's forward, in three
    launches for each dtype and power iteration however many they are, and every access during it
    gets that one result. A weight that changes meanwhile is normalized anew; on a GPU a change of
    its values through ``weight.data`` goes unnoticed.

    Args:
        model: any module; itself a candidate.
        names: names of parameters, exact or shell patterns: ``("weight", "in_proj_weight",
            "weight_*")`` takes attention and recurrent layers too. ``weight`` is looked for in the
            types of ``include_types``, other names in any module, and of a pattern parameters of
            two dimensions or more.
        include_types: layer types, subclasses included; None is Linear, Conv1d to 3d,
            ConvTranspose1d to 3d, Embedding and Bilinear, with their lazy variants; with
            ``operator="convolution"`` the convolutions alone. Types without such a parameter are
            passed over.
        exclude_types: types to leave out, subclasses included.
        exclude_names: qualified module names to leave out, exact or shell patterns: ``"head"``,
            ``"blocks.*.shortcut"``.
        predicate: called with a qualified name and its module; False leaves it out.
        foreach: True normalizes all weights of the model at the start of its forward, those
            normalized by other calls too; False normalizes each at its access, as
            :func:`spectral_norm` does; None does the first on GPUs and the second elsewhere. What
            is accessed outside the model's forward is normalized at its access in any case.
        options: those of :func:`spectral_norm`.

    Returns:
        The same model. Where nothing of it matches, a warning says so; :func:`left_out` lists what
        is not normalized, and why.

    Raises:
        ValueError, IndexError: as :func:`spectral_norm`; then no layer has been changed.
        ValueError: a name or pattern of ``exclude_names`` matches no module of the model, one of
            ``names`` no parameter, or a ``weight`` is a buffer.
        TypeError: an option that :func:`spectral_norm` does not have, or an argument of another
            type than it must be.

    Example:
        >>> from torch import nn
        >>> from snorm_triton import apply_spectral_norm, sigmas
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(1))
        >>> model = apply_spectral_norm(model, exclude_names="3")
        >>> list(sigmas(model))
        ['0.weight']
    """
    if include_types is None and options.get("operator") == "convolution":
        include_types = CONVOLUTIONS + TRANSPOSED
    selected = selection_of(names, include_types, exclude_types, exclude_names, predicate)
    apply(model, SpectralNormWrapper, selected, foreach, options)
    return model


def selection_of(
    names: str | Sequence[str],
    include_types: Types | None,
    exclude_types: Types,
    exclude_names: str | Sequence[str],
    predicate: Callable[[str, nn.Module], bool] | None,
    constraint: Constraint = SPECTRAL_NORM,
) -> Selection:
    """The arguments by which a user selects parameters; TypeError for one of the wrong type."""
    return Selection(
        _strings("names", names),
        None if include_types is None else _types("include_types", include_types),
        _types("exclude_types", exclude_types),
        _strings("exclude_names", exclude_names),
        predicate,
        constraint,
    )


def apply(
    model: nn.Module,
    wrapper: type[Wrapper],
    selection: Selection,
    foreach: bool | None,
    options: Any,
) -> None:
    """Put the constraint of ``wrapper`` on all that is selected, or raise and change nothing."""
    check_model(model)
    function = f"apply_{wrapper.function}"
    if "name" in options:
        raise TypeError(f"{function} takes names, in place of name")
    selection.check(model)
    if foreach is not None and not isinstance(foreach, bool):
        raise ValueError(f"foreach must be True, False or None, got {foreach!r}")
    found = list(selection.parameters_of(model))
    wrappers = [wrapper(module, name, **options) for _, module, name in found]
    for (path, _, _), each in zip(found, wrappers, strict=True):
        if each.name in each.module._buffers:
            raise ValueError(
                f"{path} is a buffer, which something else computes: leave its module out, by "
                "exclude_names or exclude_types"
            )
        each.check()
    if not wrappers and not selection.finds_taken(model):
        _warn_of_nothing(model, function)
    for each in wrappers:
        each.attach()
    whole_model.detach(model)
    if foreach is not False:
        whole_model.attach(model, everywhere=foreach is True)


def remove_all(model: nn.Module, kind: type[Wrapper], leave_parametrized: bool = True) -> None:
    """Take the constraint of a wrapper off everywhere, or raise and change nothing."""
    wrappers = [wrapper for _, wrapper in constrained(model, kind)]
    if not wrappers:
        raise ValueError(
            f"no {kind.constraint} of snorm_triton is registered in {type(model).__name__}"
        )
    for wrapper in wrappers:
        wrapper.check_attached()
    for wrapper in wrappers:
        wrapper.remove(leave_parametrized=leave_parametrized)
    whole_model.detach(model)


def _warn_of_nothing(model: nn.Module, function: str) -> None:
    others = left_out(model)
    shown = ", ".join(each.name for each in others[:3]) + (", ..." if len(others) > 3 else "")
    warnings.warn(
        f"{function} has normalized nothing of {type(model).__name__}"
        + (f": left out are {shown}, see snorm_triton.left_out(model)" if others else ""),
        UserWarning,
        stacklevel=4,
    )


def _strings(argument: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, Iterable):
        raise TypeError(f"{argument} must be a string or strings, got {value!r}")
    strings = tuple(value)
    for each in strings:
        if not isinstance(each, str):
            raise TypeError(f"{argument} must hold strings, got {each!r}")
    return strings


def _types(argument: str, types: Types) -> tuple[type[nn.Module], ...]:
    if isinstance(types, type):
        return (types,)
    if isinstance(types, str) or not isinstance(types, Iterable):
        raise TypeError(f"{argument} must hold module types, got {types!r}")
    return tuple(types)
