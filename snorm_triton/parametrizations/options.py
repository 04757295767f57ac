"""The options of a constraint, checked once: one sentence where one is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from math import inf
from typing import Any, Literal, Self, TypedDict, get_args

from ..functional import is_positive
from ..ops.dispatch import BACKENDS, BackendName
from ..ops.newton_schulz import N_ITERATIONS
from ..ops.orthogonal_maps import MAPS, MapName
from ..ops.rescaling import PLAIN, Rescaling
from .checks import (
    check_among,
    check_dim_is_integer,
    check_flag,
    check_input_shape,
    check_iterations,
)

Policy = Literal["access", "update"]
POLICIES = get_args(Policy)
Operator = Literal["matrix", "convolution"]
OPERATORS = get_args(Operator)
Scale = Literal["learned"]
(LEARNED,) = get_args(Scale)


class CommonOptions(TypedDict, total=False):
    """Those of every constraint, as keywords of a function."""

    autocast_output: bool
    cache_evaluation: bool


class KernelKeywords(CommonOptions, total=False):
    """Those of a constraint that the kernels compute too."""

    backend: BackendName


class OrthogonalKeywords(CommonOptions, total=False):
    """Those of an orthogonal parametrization."""

    orthogonal_map: MapName | None
    use_trivialization: bool
    dim: int | None
    n_iterations: int


class WeightNormKeywords(KernelKeywords, total=False):
    """Those of a weight norm."""

    dim: int | None


class MoreOptions(KernelKeywords, total=False):
    """Those that torch's spectral norm lacks."""

    stable_fp32: bool
    power_iter_on_eval: bool
    power_iter: Policy
    operator: Operator
    input_shape: Sequence[int] | None
    bound: float | None
    scale: float | Scale


class Options(MoreOptions, total=False):
    """Those of a spectral norm."""

    n_power_iterations: int
    eps: float
    dim: int | None


@dataclass(frozen=True, kw_only=True)
class ConstraintOptions:
    """What every constraint has.

    Raises:
        TypeError: a flag is neither True nor False.
    """

    autocast_output: bool = False
    cache_evaluation: bool = True

    def __post_init__(self) -> None:
        for option, default in self.defaults().items():
            if isinstance(default, bool):
                check_flag(option, getattr(self, option))

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """All options by name, at their defaults: those of every constraint last."""
        own_first = sorted(fields(cls), key=lambda field: bool(field.kw_only))
        return {field.name: field.default for field in own_first}

    @classmethod
    def of(cls, options: Any) -> Self:
        """From keywords; TypeError for one that there is not."""
        known = cls.defaults()
        for option in options.keys() - known:
            raise TypeError(f"unknown option {option!r}; the options are {', '.join(known)}")
        return cls(**options)

    def differing(self) -> dict[str, Any]:
        """Those that are not at their defaults."""
        defaults = self.defaults()
        return {name: value for name, value in asdict(self).items() if value != defaults[name]}


@dataclass(frozen=True, kw_only=True)
class KernelOptions(ConstraintOptions):
    """What every constraint has that the kernels compute too.

    Raises:
        ValueError: ``backend`` is unknown.
    """

    backend: BackendName = "auto"

    def __post_init__(self) -> None:
        check_among("backend", self.backend, BACKENDS)
        super().__post_init__()


@dataclass(frozen=True)
class OrthogonalOptions(ConstraintOptions):
    """What :func:`snorm_triton.orthogonal` says of each.

    Raises:
        ValueError: ``orthogonal_map`` is unknown, ``dim`` is no integer, ``n_iterations`` is not
            positive.
    """

    orthogonal_map: MapName | None = None
    use_trivialization: bool = True
    dim: int | None = None
    n_iterations: int = N_ITERATIONS

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.orthogonal_map is not None:
            check_among("orthogonal_map", self.orthogonal_map, MAPS)
        check_dim_is_integer(self.dim)
        check_iterations(self.n_iterations, "n_iterations")


@dataclass(frozen=True)
class WeightNormOptions(KernelOptions):
    """What :func:`snorm_triton.weight_norm` says of each.

    Raises:
        ValueError: ``dim`` is no integer.
    """

    dim: int | None = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_dim_is_integer(self.dim)


@dataclass(frozen=True)
class SpectralNormOptions(KernelOptions):
    """What :func:`snorm_triton.spectral_norm` says of each.

    Raises:
        ValueError: ``n_power_iterations``, ``eps``, ``bound`` or ``scale`` is not positive, ``dim``
            is no integer, ``power_iter`` or ``operator`` is unknown, ``input_shape`` is no shape.
    """

    n_power_iterations: int = 1
    eps: float = 1e-12
    dim: int | None = None
    stable_fp32: bool = True
    power_iter_on_eval: bool = False
    power_iter: Policy = "access"
    operator: Operator = "matrix"
    input_shape: Sequence[int] | None = None
    bound: float | None = None
    scale: float | Scale = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_among("operator", self.operator, OPERATORS)
        if self.input_shape is not None:
            check_input_shape(self.input_shape, self.operator)
            object.__setattr__(self, "input_shape", tuple(self.input_shape))
        check_iterations(self.n_power_iterations)
        if not is_positive(self.eps) or self.eps == inf:
            raise ValueError(f"eps must be positive and finite, got {self.eps!r}")
        if self.bound is not None and not is_positive(self.bound):
            raise ValueError(f"bound must be a positive number, got {self.bound!r}")
        is_word = isinstance(self.scale, str) and self.scale == LEARNED
        if not is_word and (not is_positive(self.scale) or self.scale == inf):
            raise ValueError(
                f"scale must be positive and finite, or {LEARNED!r}, got {self.scale!r}"
            )
        check_dim_is_integer(self.dim)
        check_among("power_iter", self.power_iter, POLICIES)
        self._decide()

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._decide()

    def _decide(self) -> None:
        rescaling = PLAIN
        if self.bound is not None or self.scale not in (1, LEARNED):
            scale = 1.0 if isinstance(self.scale, str) else float(self.scale)
            rescaling = Rescaling(float(self.bound or 0), scale)
        vars(self)["_rescaling"] = rescaling  # once: it is asked for at each access

    @property
    def rescaling(self) -> Rescaling:
        """What becomes of a weight once its sigma is known, but for a scale that is learned."""
        rescaling: Rescaling = self.__dict__["_rescaling"]
        return rescaling


OPTIONS = SpectralNormOptions.defaults()


def option(name: str) -> Any:
    """An attribute of a module with ``options``: one of them, which may be set, as torch's."""

    def get(module: Any) -> Any:
        return getattr(module.options, name)

    def put(module: Any, value: Any) -> None:
        module.options = replace(module.options, **{name: value})
        module.prepared = None

    return property(get, put)
