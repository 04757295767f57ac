"""Which parameters of a model are normalized, and which are left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from .modules.lazy import waiting
from .modules.orthogonal import OrthogonalWrapper
from .modules.spectral_norm import SpectralNormWrapper
from .modules.weight_norm import WeightNormWrapper
from .modules.wrapper import Wrapper
from .parametrizations.orthogonal import OrthogonalParametrization
from .parametrizations.spectral_norm import SpectralNormParametrization
from .parametrizations.weight_norm import WeightNormParametrization
from .reports import check_model
from .torch_internals.parametrize import (
    LegacySpectralNorm,
    LegacyWeightNorm,
    TorchOrthogonal,
    TorchSpectralNorm,
    TorchWeightNorm,
)

NORMALIZED_TYPES: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Embedding,
    nn.Bilinear,
)  # and their subclasses, the lazy ones among them


class LeftOut(NamedTuple):
    """A parameter's qualified name, and why no spectral norm is on it, as a clause."""

    name: str
    reason: str


class Constraint(NamedTuple):
    """Of which modules a constraint takes ``weight`` by default, and where it is on already."""

    types: tuple[type[nn.Module], ...]
    is_on: Callable[[nn.Module, str], bool]


class Selection(NamedTuple):
    """What to normalize: patterns of parameters' names, and of which modules."""

    names: tuple[str, ...]
    include: tuple[type[nn.Module], ...] | None
    exclude: tuple[type[nn.Module], ...]
    exclude_names: tuple[str, ...]
    predicate: Callable[[str, nn.Module], bool] | None
    constraint: Constraint

    def check(self, model: nn.Module) -> None:
        """Raise TypeError for a value of the wrong type, ValueError for a name of nothing."""
        for argument, types in (("include_types", self.include), ("exclude_types", self.exclude)):
            for each in types or ():
                if not isinstance(each, type):
                    raise TypeError(f"{argument} must hold module types, got {each!r}")
        if self.predicate is not None and not callable(self.predicate):
            raise TypeError(
                f"predicate must be a function of a name and a module, got {self.predicate!r}"
            )
        paths = [path for path, _ in model.named_modules()]
        for pattern in self.exclude_names:
            if not any(fnmatchcase(path, pattern) for path in paths):
                raise ValueError(f"exclude_names: {pattern!r} matches no module of the model")
        known = {name for module in model.modules() for name in _tensors(module)}
        for pattern in self.names:
            if pattern != "weight" and not any(fnmatchcase(name, pattern) for name in known):
                raise ValueError(f"names: {pattern!r} matches no parameter of the model")

    def parameters_of(self, model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
        """The parameters to normalize: qualified name, module, name."""
        for path, module in model.named_modules():
            for name in _tensors(module):
                if self.takes(path, module, name) and not self.constraint.is_on(module, name):
                    yield f"{path}.{name}" if path else name, module, name

    def finds_taken(self, model: nn.Module) -> bool:
        """Whether a parameter that it takes is normalized already."""
        return any(
            self.takes(path, module, name) and self.constraint.is_on(module, name)
            for path, module in model.named_modules()
            for name in _tensors(module)
        )

    def takes(self, path: str, module: nn.Module, name: str) -> bool:
        """Whether it takes the parameter ``name`` of the module at ``path``."""
        include = self.include
        if include is None:
            include = self.constraint.types if name == "weight" else (nn.Module,)
        return (
            any(_matches(pattern, module, name) for pattern in self.names)
            and isinstance(module, include)
            and not isinstance(module, self.exclude)
            and not any(fnmatchcase(path, pattern) for pattern in self.exclude_names)
            and (self.predicate is None or self.predicate(path, module))
        )


def left_out(model: nn.Module) -> list[LeftOut]:
    """The parameters of two dimensions or more that no spectral norm is on, and why.

    Example:
        >>> from torch import nn
        >>> from snorm_triton import apply_spectral_norm, left_out
        >>> left_out(apply_spectral_norm(nn.Sequential(nn.Linear(2, 2), nn.GRUCell(2, 2))))[0]
        LeftOut(name='1.weight_ih', reason="its name is not 'weight': give names")
    """
    check_model(model)
    found = []
    for path, module in model.named_modules():
        for name in module._parameters:
            tensor = module._parameters[name]
            if path.rpartition(".")[0].endswith("parametrizations") or is_normalized(module, name):
                continue
            if tensor is not None and (is_lazy(tensor) or tensor.ndim > 1):
                whole = f"{path}.{name}" if path else name
                found.append(LeftOut(whole, _reason(module, name)))
    return found


def _reason(module: nn.Module, name: str) -> str:
    if name != "weight":
        return "its name is not 'weight': give names"
    if not isinstance(module, NORMALIZED_TYPES):
        return f"{type(module).__name__} is none of the types by default: give include_types"
    return "not asked for"


def is_normalized(module: nn.Module, name: str) -> bool:
    """Whether a spectral norm is on the parameter: ours, torch's, or torch's legacy hook."""
    kinds = (SpectralNormParametrization, TorchSpectralNorm)
    return _is_on(module, name, LegacySpectralNorm, SpectralNormWrapper, kinds)


def is_weight_normalized(module: nn.Module, name: str) -> bool:
    """Whether a weight norm is on the parameter: ours, torch's, or torch's legacy hook."""
    kinds = (WeightNormParametrization, TorchWeightNorm)
    return _is_on(module, name, LegacyWeightNorm, WeightNormWrapper, kinds)


def is_orthogonal(module: nn.Module, name: str) -> bool:
    """Whether an orthogonal parametrization is on the parameter: ours or torch's."""
    kinds = (OrthogonalParametrization, TorchOrthogonal)
    return _is_on(module, name, (), OrthogonalWrapper, kinds)


def _is_on(
    module: nn.Module, name: str, hook: Any, wrapper: type[Wrapper], kinds: tuple[Any, ...]
) -> bool:
    hooks = module._forward_pre_hooks.values()
    if any(isinstance(each, hook) and each.name == name for each in hooks):
        return True
    if waiting(module, name, wrapper):
        return True
    if not is_parametrized(module, name):
        return False
    all_lists: Any = module.parametrizations
    return any(isinstance(p, kinds) for p in all_lists[name])


SPECTRAL_NORM = Constraint(NORMALIZED_TYPES, is_normalized)
WEIGHT_NORM = Constraint(NORMALIZED_TYPES[:7], is_weight_normalized)  # Linear and convolutions
ORTHOGONAL = Constraint((nn.Linear,), is_orthogonal)  # a convolution's weight is not one matrix
ORTHOGONAL_BY_DIM = Constraint(WEIGHT_NORM.types, is_orthogonal)


def _tensors(module: nn.Module) -> list[str]:
    """The names of a module's own parameters, be they parametrized, lazy, or a hook's."""
    if isinstance(module, nn.ModuleDict | nn.ModuleList):
        return []
    names = [name for name, tensor in module._parameters.items() if tensor is not None]
    names += getattr(module, "parametrizations", ())
    names += [
        hook.name
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, LegacySpectralNorm | LegacyWeightNorm)
    ]
    names += [name for name in ("weight",) if module._buffers.get(name) is not None]
    return list(dict.fromkeys(names))


def _matches(pattern: str, module: nn.Module, name: str) -> bool:
    if pattern == name:
        return True
    tensor = module._parameters.get(name)
    is_matrix = tensor is None or is_lazy(tensor) or tensor.ndim > 1
    return is_matrix and fnmatchcase(name, pattern)
