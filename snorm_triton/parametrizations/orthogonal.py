"""The parametrization of a weight by matrices with orthonormal columns or rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Unpack

import torch
from torch import Tensor

from ..functional import matrix_shape
from ..ops import orthogonal_maps, polar_factor
from ..ops.modes.composite import without_autocast
from ..ops.orthogonal_maps import MapName, Reading
from ..ops.polar_factor import Polar, PolarAccess
from ..ops.recomputation import Checkpoints
from .base import Originals
from .checks import check_dim
from .determined import Determined
from .options import OrthogonalKeywords, OrthogonalOptions


class OrthogonalParametrization(Determined):
    """A map to orthonormal matrices, for ``torch.nn.utils.parametrize.register_parametrization``.

    Holds ``base``, as torch's does, where ``use_trivialization`` and the map ask for it: square
    matrices whose sides are the larger of the weight's, float32 at least. The weight is computed in
    that precision too.

    Args:
        weight: the weight as it is now, at least 2-D, floating or complex.
        options: those of :func:`snorm_triton.orthogonal`.
        more: the options as keywords, in place of ``options``.

    Raises:
        ValueError, IndexError: an option is not what it may be for this weight.
    """

    base: Tensor | None
    options: OrthogonalOptions

    def __init__(
        self,
        weight: Tensor,
        options: OrthogonalOptions | None = None,
        **more: Unpack[OrthogonalKeywords],
    ) -> None:
        super().__init__()
        options = OrthogonalOptions.of(more) if options is None else options
        self.reading, kind = read_as_matrices(weight, options)
        self.options = replace(options, orthogonal_map=kind, dim=self.reading.dim)
        self.shape, self.dtype = weight.shape, weight.dtype
        if options.use_trivialization and kind != "newton_schulz":
            self.register_buffer("base", None)

    @property
    def orthogonal_map(self) -> str:
        """One of householder, matrix_exp, cayley and newton_schulz."""
        return self.options.orthogonal_map or ""

    @property
    def original_is_tensor(self) -> bool:
        """False, but of a map that nothing is known to be the inverse of."""
        return self.orthogonal_map in ("matrix_exp", "cayley") and "base" not in self._buffers

    def computed(self, *originals: Tensor) -> Tensor:
        """The weight, of the shape of its original."""
        (original,) = originals
        if not torch.compiler.is_compiling():
            self.__dict__["dtype"] = original.dtype  # past Module's way to set attributes
        if self.orthogonal_map == "newton_schulz" and 0 not in self.shape:
            return polar_factor.orthonormalize(self.access((original,), None))
        dtype = self.output_dtype(original)
        return without_autocast(original.device.type, self._mapped, original, dtype)

    def _mapped(self, original: Tensor, dtype: torch.dtype) -> Tensor:
        if 0 in self.shape:
            return original.to(dtype, copy=True)
        reading = self.reading
        base = self._buffers.get("base")
        base = None if base is None else _wide(base)
        x, excess = _wide(reading.tall(original)), abs(reading.rows - reading.columns)
        q = orthogonal_maps.orthonormal(x, self.orthogonal_map, base, excess)
        return reading.undo(q, original).to(dtype)

    @torch.no_grad()
    def right_inverse(self, value: Tensor) -> Tensor:
        """What the map takes to ``value`` made orthonormal.

        That is by a QR decomposition, as torch has it, and anew with every ``base``; of
        newton_schulz the polar factor, which is its own original.

        Raises:
            ValueError: ``value`` is of another shape than the weight, or has no polar factor.
            NotImplementedError: the map is matrix_exp or cayley, without a base.
        """
        if value.shape != self.shape:
            raise ValueError(
                f"the value must be of the weight's shape {tuple(self.shape)}, got "
                f"{tuple(value.shape)}"
            )
        if value.dtype != self.dtype:
            raise ValueError(f"the value must be {self.dtype} as the weight, got {value.dtype}")
        if self.original_is_tensor:
            raise NotImplementedError(
                f"a weight with orthogonal_map={self.orthogonal_map!r} can be assigned to with "
                "use_trivialization=True only"
            )
        self.prepared = None
        if self.orthogonal_map == "newton_schulz":
            try:
                return polar_factor.well_conditioned(self.access((value,), None))
            except ValueError as error:
                raise ValueError(f"a weight of shape {tuple(self.shape)}: {error}") from None
        x = _wide(self.reading.tall(value))
        if "base" in self._buffers:
            self.base = orthogonal_maps.base_of(x)
            original = orthogonal_maps.negative_identity_like(x)
        else:
            original = orthogonal_maps.reflectors_of(x)
        return self.reading.undo(original, value).to(value.dtype)

    def joins(self, originals: Originals) -> bool:
        """Whether the map is of matrix products, which can be batched."""
        return self.orthogonal_map == "newton_schulz" and 0 not in self.shape

    def access(self, originals: Originals, checkpoints: Checkpoints | None) -> PolarAccess:
        """What an access computes here and now."""
        (weight,) = originals
        dtype = self.output_dtype(weight)
        return PolarAccess(weight, Polar(self.reading, self.options.n_iterations, dtype))

    @staticmethod
    def compute(accesses: Sequence[PolarAccess]) -> list[Any]:
        """The polar factor of each."""
        return [(weight,) for weight in polar_factor.orthonormalize_together(accesses)]

    def settle(self, access: PolarAccess, output: Any, checkpoints: Checkpoints | None) -> None:
        """Keep the weight of an evaluation."""
        if not self.training:
            self.keep((access.weight,), output[0])

    def state_tensors(self) -> tuple[Tensor, ...]:
        """The base, if there is one."""
        base = self._buffers.get("base")
        return () if base is None else (base,)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = self._buffers.get("base")
        super()._apply(fn, recurse)
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        base = self._buffers.get("base")
        if before is not None and base is not None and base.dtype.itemsize < 4:
            self.base = _wide(before.to(base.device))
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.prepared = None
        if (base := self._buffers.get("base")) is not None:
            self.base = _wide(base)

    def extra_repr(self) -> str:
        shown = {"orthogonal_map": self.orthogonal_map, **self.options.differing()}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())


def read_as_matrices(weight: Tensor, options: OrthogonalOptions) -> tuple[Reading, MapName]:
    """How such a weight is read, and its map; raise what is wrong with the options for it."""
    if weight.ndim < 2:
        raise ValueError(
            f"an orthogonal weight must have two dimensions or more, got shape "
            f"{tuple(weight.shape)}"
        )
    if options.dim is not None:
        check_dim(options.dim, weight.shape)
        reading = Reading(options.dim % weight.ndim, *matrix_shape(weight, options.dim))
    else:
        reading = Reading(None, *weight.shape[-2:])
    kind = options.orthogonal_map or orthogonal_maps.default_map(reading, weight.is_complex())
    if kind == "householder" and weight.is_complex():
        raise ValueError(
            "orthogonal_map='householder' has no complex form: use 'matrix_exp', 'cayley' or "
            f"'newton_schulz' for a {weight.dtype} weight"
        )
    return reading, kind


def _wide(tensor: Tensor) -> Tensor:
    """In float32 at least."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
