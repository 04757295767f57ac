"""A model's spectral norms turned from torch's into ours, or back, where they stand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar, Unpack

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import (
    ParametrizationList,
    is_parametrized,
    register_parametrization,
)

from ..checkpoints.layouts import Target
from ..parametrizations.base import evaluating
from ..parametrizations.convolution_norm import ConvolutionNormParametrization
from ..parametrizations.options import OPTIONS, MoreOptions, SpectralNormOptions
from ..parametrizations.spectral_norm import SpectralNormParametrization
from ..torch_internals.parametrize import LegacySpectralNorm, TorchSpectralNorm
from .copying import own_class
from .lazy import waiting
from .loading import forget_checkpoints
from .spectral_norm import SpectralNormWrapper
from .torch_hooks import take_spectral_norm_off
from .whole_model import detach

M = TypeVar("M", bound=nn.Module)
Vectors = tuple[Tensor, Tensor]

KEPT = ("n_power_iterations", "dim", "eps")
IMMATERIAL = ("backend", "stable_fp32", "cache_evaluation")  # they change no number
TARGETS: dict[str, type[nn.Module]] = {
    "ours": SpectralNormParametrization,
    "torch": TorchSpectralNorm,
}


class Found(NamedTuple):
    """A spectral norm of any kind; ``position`` is its place in the list of parametrizations."""

    where: str
    module: nn.Module
    name: str
    norm: Any
    position: int | None = None


def convert_spectral_norm(model: M, to: Target = "ours", **options: Unpack[MoreOptions]) -> M:
    """Turn the spectral norms of a model into ours, or into torch's, in place.

    Takes :func:`torch.nn.utils.parametrizations.spectral_norm` and the legacy hook of
    :func:`torch.nn.utils.spectral_norm`, on any layer and parameter. ``to="torch"`` takes ours and
    the hook and makes torch's parametrization of them.

    Parameters stay the same objects, so an optimizer keeps its state. u, v, the number of
    iterations, eps, dim and the mode are kept too; nothing is drawn at random and nothing iterates.
    Evaluation gives the same outputs to rounding, and so does training, but for the legacy hook,
    which updates v before u. Other parametrizations of the same parameter stay in their places.
    Sigma of what became ours is NaN until its next access.

    Args:
        model: any module; itself a candidate.
        to: ``"ours"`` or ``"torch"``.
        options: those of :func:`spectral_norm` that torch's lacks, such as ``backend``; with
            ``to="torch"`` none.

    Returns:
        The same model.

    Raises:
        ValueError: the model has no spectral norm, or one that cannot be converted: of a derived
            class, in a lazy or sharded module, with an option that torch's lacks, or a hook that
            something else has built on; ``to`` is unknown; ``backend`` cannot run.
        TypeError: an option that there is not. Whatever is raised, the model is unchanged.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from snorm_triton import convert_spectral_norm
        >>> layer = torch.nn.utils.spectral_norm(nn.Linear(20, 40))
        >>> convert_spectral_norm(layer).parametrizations.weight[0]
        SpectralNormParametrization(n_power_iterations=1, dim=0, eps=1e-12)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if to not in TARGETS:
        raise ValueError(f"to must be 'ours' or 'torch', got {to!r}")
    _check_options(to, options)
    found = list(_find(model))
    if not found:
        raise ValueError(f"{type(model).__name__} has no spectral norm")
    replaced: list[tuple[Found, nn.Module]] = []
    made: dict[nn.Module, nn.Module] = {}  # what stood in two places does so afterwards
    for each in found:
        if isinstance(each.norm, TARGETS[to]) or (each.norm is None and to == "ours"):
            continue
        if each.norm not in made or each.position is None:
            made[each.norm] = _converted(each, to, options)
        replaced.append((each, made[each.norm]))
    for each, norm in replaced:
        _replace(each, norm)
    if to == "torch":
        detach(model)
    return model


def _check_options(to: str, options: Any) -> None:
    known = [option for option in OPTIONS if option not in KEPT] if to == "ours" else []
    for option in options:
        if option in KEPT:
            raise TypeError(f"{option} stays what it is in the model: do not give it")
        if option not in known:
            raise TypeError(
                f"unknown option {option!r}; with to={to!r} the options are "
                f"{', '.join(known) or 'none'}"
            )


def _find(model: nn.Module) -> Iterator[Found]:
    for prefix, module in list(model.named_modules()):
        path = f"{prefix}." if prefix else ""
        if is_parametrized(module):
            all_lists: Any = module.parametrizations
            for name, parametrizations in all_lists.items():
                for position, norm in enumerate(parametrizations):
                    if isinstance(norm, tuple(TARGETS.values())):
                        yield Found(path + name, module, name, norm, position)
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, LegacySpectralNorm):
                yield Found(path + hook.name, module, hook.name, hook)
        for each in waiting(module, wrapper=SpectralNormWrapper):
            yield Found(path + each.name, module, each.name, None)


def _converted(each: Found, to: str, options: MoreOptions) -> nn.Module:
    """The spectral norm that takes the place of ``each``; ValueError where none can."""
    _check_convertible(each)
    weight, vectors = _state(each)
    norm = each.norm
    n_power_iterations = getattr(norm, "n_power_iterations", 1)  # torch's lacks it where 1-D
    try:
        if to == "ours":
            whole = SpectralNormOptions(n_power_iterations, norm.eps, norm.dim, **options)
            new: nn.Module = SpectralNormParametrization(weight, whole, vectors=vectors)
        else:
            new = _torch_spectral_norm(weight, vectors, n_power_iterations, norm.dim, norm.eps)
    except (ValueError, IndexError) as error:
        raise ValueError(f"{each.where}: {error}") from error
    return new.train(each.module.training if each.position is None else norm.training)


def _torch_spectral_norm(
    weight: Tensor, vectors: Vectors | None, n_power_iterations: int, dim: int, eps: float
) -> TorchSpectralNorm:
    # It draws u, v and iterates when it is made: on the meta device both cost nothing.
    norm = TorchSpectralNorm(torch.empty_like(weight, device="meta"), n_power_iterations, dim, eps)
    if vectors is not None:
        norm._u, norm._v = (vector.to(weight.dtype) for vector in vectors)
    return norm


def _check_convertible(each: Found) -> None:
    where, module, name, norm, position = each
    if norm is None:
        raise ValueError(f"{where} waits for its lazy module: run a forward first")
    if isinstance(norm, ConvolutionNormParametrization):
        raise ValueError(f"{where}: torch's spectral norm has no operator='convolution'")
    if (kind := type(norm)) not in (*TARGETS.values(), LegacySpectralNorm):
        raise ValueError(f"{where}: {kind.__name__} is derived from a spectral norm")
    if is_parametrized(module) and len(type(module).__bases__) != 1:
        raise ValueError(
            f"{where}: {type(module).__name__} is sharded; convert the model before that"
        )
    if isinstance(norm, SpectralNormParametrization):
        for option, value in norm.options.differing().items():
            if option not in (*KEPT, *IMMATERIAL):
                raise ValueError(f"{where}: torch's spectral norm has no {option}={value!r}")
    if position is None and (
        module._parameters.get(f"{name}_orig") is None
        or not {f"{name}_u", f"{name}_v"} <= module._buffers.keys()
    ):
        raise ValueError(
            f"{where}: the module has no parameter {name}_orig with buffers {name}_u and {name}_v "
            "any more, which its legacy hook reads"
        )


def _state(each: Found) -> tuple[Tensor, Vectors | None]:
    """The weight before normalization and, unless it is 1-D, u and v."""
    module: Any = each.module
    if each.position is None:
        weight, u, v = (getattr(module, each.name + suffix) for suffix in ("_orig", "_u", "_v"))
    else:
        weight = _input(module.parametrizations[each.name])
        u, v = each.norm._buffers.get("_u"), each.norm._buffers.get("_v")
    return weight, None if weight.ndim < 2 else (u, v)


def _input(parametrizations: ParametrizationList) -> Tensor:
    """A tensor of the weight's shape and dtype, also where a parametrization splits it in two."""
    if parametrizations.is_tensor:
        return parametrizations.original
    modes = [(module, module.training) for module in parametrizations.modules()]
    parametrizations.eval()
    try:
        with evaluating(), torch.no_grad():
            return parametrizations()  # type: ignore[no-any-return]
    finally:
        for module, training in modes:
            module.training = training


def _replace(each: Found, norm: nn.Module) -> None:
    module, name = each.module, each.name
    if is_parametrized(module):
        own_class(module)
    if each.position is None:
        take_spectral_norm_off(module, each.norm)
        # Unsafe is unchecked: the check is an access, which iterates.
        register_parametrization(module, name, norm, unsafe=True)
    all_lists: Any = module.parametrizations
    parametrizations: ParametrizationList = all_lists[name]
    if each.position is None:
        parametrizations.unsafe = False
    else:
        parametrizations[each.position] = norm
    if isinstance(norm, SpectralNormParametrization):
        SpectralNormWrapper(module, name).adopt()
    else:
        parametrizations.__class__ = ParametrizationList
        forget_checkpoints(module)
