"""A model's weight norms turned from torch's into ours, or back, where they stand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar, Unpack

from torch import nn
from torch.nn.utils.parametrize import (
    ParametrizationList,
    is_parametrized,
    register_parametrization,
)

from ..checkpoints.layouts import Target
from ..parametrizations.options import KernelKeywords, WeightNormOptions
from ..parametrizations.weight_norm import WeightNormParametrization
from ..torch_internals.parametrize import LegacyWeightNorm, TorchWeightNorm
from .access import originals_of
from .copying import own_class
from .lazy import waiting
from .loading import forget_checkpoints
from .torch_hooks import take_weight_norm_off
from .weight_norm import WeightNormWrapper
from .whole_model import detach

M = TypeVar("M", bound=nn.Module)
TARGETS: dict[str, Any] = {"ours": WeightNormParametrization, "torch": TorchWeightNorm}
IMMATERIAL = ("backend", "cache_evaluation", "dim")  # of ours: they change no number


class Found(NamedTuple):
    """A weight norm of any kind, on the parameter ``name`` of a module."""

    where: str
    module: nn.Module
    name: str
    norm: Any


def convert_weight_norm(model: M, to: Target = "ours", **options: Unpack[KernelKeywords]) -> M:
    """Turn the weight norms of a model into ours, or into torch's parametrization, in place.

    Takes :func:`torch.nn.utils.parametrizations.weight_norm` and the older hook of
    :func:`torch.nn.utils.weight_norm`. g and v stay the same parameters, so an optimizer keeps its
    state; outputs are the same to rounding.

    Args:
        model: any module; itself a candidate.
        to: ``"ours"`` or ``"torch"``.
        options: those of :func:`weight_norm` that torch's lacks; with ``to="torch"`` none.

    Returns:
        The same model.

    Raises:
        ValueError: the model has no weight norm, or one that cannot be converted: of a derived
            class, below another parametrization, in a lazy or sharded module, or with an option
            that torch's lacks; ``to`` is unknown; ``backend`` cannot run.
        TypeError: an option that there is not. Whatever is raised, the model is unchanged.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from snorm_triton import convert_weight_norm
        >>> layer = torch.nn.utils.parametrizations.weight_norm(nn.Linear(20, 40))
        >>> convert_weight_norm(layer).parametrizations.weight[0]
        WeightNormParametrization(dim=0)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if to not in TARGETS:
        raise ValueError(f"to must be 'ours' or 'torch', got {to!r}")
    known = KernelKeywords.__annotations__ if to == "ours" else {}
    for option in options:
        if option not in known:
            raise TypeError(
                f"unknown option {option!r}; with to={to!r} the options are "
                f"{', '.join(known) or 'none'}"
            )
    found = list(_find(model))
    if not found:
        raise ValueError(f"{type(model).__name__} has no weight norm")
    converted = [
        (each, _converted(each, to, options))
        for each in found
        if each.norm is None or type(each.norm) is not TARGETS[to]
    ]
    for each, norm in converted:
        _replace(each, norm)
    if to == "torch":
        detach(model)
    return model


def _find(model: nn.Module) -> Iterator[Found]:
    for prefix, module in list(model.named_modules()):
        path = f"{prefix}." if prefix else ""
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, LegacyWeightNorm):
                yield Found(path + hook.name, module, hook.name, hook)
        for each in waiting(module, wrapper=WeightNormWrapper):
            yield Found(path + each.name, module, each.name, None)
        if is_parametrized(module):
            all_lists: Any = module.parametrizations
            for name, parametrizations in all_lists.items():
                for norm in parametrizations:
                    if isinstance(norm, tuple(TARGETS.values())):
                        yield Found(path + name, module, name, norm)


def _converted(each: Found, to: str, options: KernelKeywords) -> nn.Module:
    """The weight norm that takes the place of ``each``; ValueError where none can."""
    where, module, name, norm = each
    if norm is None:
        raise ValueError(f"{where} waits for its lazy module: run a forward first")
    if type(norm) not in (*TARGETS.values(), LegacyWeightNorm):
        raise ValueError(
            f"{where}: {type(norm).__name__} is derived from a weight norm and may compute "
            "something else"
        )
    if is_parametrized(module) and len(type(module).__bases__) != 1:
        raise ValueError(
            f"{where}: {type(module).__name__} is sharded; convert the model before that"
        )
    if is_parametrized(module, name) and len(_list_of(module, name)) > 1:
        raise ValueError(f"{where} has another parametrization on its weight norm")
    if isinstance(norm, WeightNormParametrization):
        for option, value in norm.options.differing().items():
            if option not in IMMATERIAL:
                raise ValueError(f"{where}: torch's weight norm has no {option}={value!r}")
    if to == "torch":
        return TorchWeightNorm(norm.dim).train(module.training)  # type: ignore[no-any-return]
    try:
        return WeightNormParametrization(
            _originals(each)[1], WeightNormOptions(dim=norm.dim, **options)
        ).train(module.training)
    except (ValueError, IndexError) as error:
        raise ValueError(f"{where}: {error}") from error


def _originals(each: Found) -> tuple[nn.Parameter, nn.Parameter]:
    module: Any = each.module
    if isinstance(each.norm, LegacyWeightNorm):
        return getattr(module, f"{each.name}_g"), getattr(module, f"{each.name}_v")
    g, v = originals_of(_list_of(module, each.name)).values()
    return g, v  # type: ignore[return-value]


def _replace(each: Found, norm: nn.Module) -> None:
    module, name = each.module, each.name
    if is_parametrized(module):
        own_class(module)
    if isinstance(each.norm, LegacyWeightNorm):
        g, v = _originals(each)
        take_weight_norm_off(module, each.norm)
        register_parametrization(module, name, norm, unsafe=True)
        _list_of(module, name)._parameters.update(original0=g, original1=v)
    else:
        _list_of(module, name)[0] = norm
    parametrizations = _list_of(module, name)
    if isinstance(norm, WeightNormParametrization):
        parametrizations.unsafe = False
        WeightNormWrapper(module, name).adopt()
    else:
        parametrizations.__class__ = ParametrizationList
        forget_checkpoints(module)


def _list_of(module: nn.Module, name: str) -> ParametrizationList:
    all_lists: Any = module.parametrizations
    return all_lists[name]  # type: ignore[no-any-return]
