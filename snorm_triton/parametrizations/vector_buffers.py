"""u, v and sigma of a weight as buffers: moved, loaded, copied, and where they were drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.layouts import rename_legacy
from ..checkpoints.missing_v import right_vector
from ..functional import matrix_shape, state_dtype
from ..ops import recomputation
from ..torch_internals.storage import version
from . import learned_scale
from .base import Originals, Parametrization
from .options import SpectralNormOptions, option
from .unchanged import Identity, identities, unchanged

VECTORS = ("_u", "_v")


class VectorBuffers(Parametrization):
    r"""What is kept of the first singular vectors of a weight, of which ``dim`` are the rows.

    Buffers ``_u`` of shape (M,) and ``_v`` of shape (N,) under torch's names, none of a 1-D weight,
    and the last sigma, of shape (), which no state dict holds. ``options.dim`` is not None;
    ``vectors`` are u and v of any dtype, None leaves them to :meth:`reset_parameters`.
    """

    _u: Tensor
    _v: Tensor
    _sigma: Tensor
    # Of the vectors that are as they were drawn: their memory and version then.
    _drawn: dict[str, Identity] | None = None
    # Sigma of an evaluation, which writes nothing, and the version of the buffer then.
    _evaluated: tuple[Tensor, int] | None = None
    is_sigma_known = False  # by an access since u and v were drawn or loaded
    n_power_iterations = option("n_power_iterations")
    eps = option("eps")
    backend = option("backend")
    options: SpectralNormOptions
    transient = (*Parametrization.transient, "owner", "_evaluated", "_drawn")

    def __init__(
        self, weight: Tensor, options: SpectralNormOptions, vectors: tuple[Tensor, Tensor] | None
    ) -> None:
        super().__init__()
        self.options = options
        self.owner = object()  # of what checkpoints keep
        dtype = state_dtype(weight)
        if weight.ndim > 1:
            u, v = vectors or [
                torch.empty(shape, dtype=dtype, device=weight.device)
                for shape in self._shapes(weight)
            ]
            self.register_buffer("_u", u.to(dtype).contiguous())
            self.register_buffer("_v", v.to(dtype).contiguous())
            self._own()
        sigma = torch.full((), torch.nan, dtype=dtype.to_real(), device=weight.device)
        self.register_buffer("_sigma", sigma, persistent=False)
        learned_scale.register(self, weight)

    @property
    def dim(self) -> int:
        """The dimension of the outputs, not negative."""
        return self.options.dim or 0

    @property
    def sigma(self) -> Tensor:
        """Sigma as of the last access, shape (), detached; NaN where none has told it yet.

        An evaluation in compiled code does not count, nor one before the module was moved.
        """
        sigma = self._sigma.detach()
        if self._evaluated is not None and self._evaluated[1] == version(sigma):
            sigma = self._evaluated[0].to(sigma.device)
        return sigma.abs() if sigma.is_complex() else sigma.clone()

    def _shapes(self, weight: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Those of u and v."""
        rows, columns = matrix_shape(weight, self.dim)
        return (rows,), (columns,)

    def alias(self, suffix: str, originals: Originals) -> Tensor | None:
        """u, v and the weight before normalization."""
        return originals[0] if suffix == "_orig" else self._buffers.get(suffix)

    def _vectors(self) -> tuple[str, ...]:
        return VECTORS if "_u" in self._buffers else ()

    def _mark_drawn(self, names: Iterable[str]) -> None:
        self._drawn = identities(self, names) or None

    def state_tensors(self) -> tuple[Tensor, ...]:
        """u, v, and a scale that is learned."""
        vectors = (x for name in VECTORS if (x := self._buffers.get(name)) is not None)
        return (*vectors, *super().state_tensors())

    def _still_drawn(self) -> tuple[str, ...]:
        return unchanged(self, self._drawn or {})

    def _forget_sigma(self) -> None:
        with torch.no_grad():
            self._sigma.fill_(torch.nan)
        self._evaluated = None
        self.is_sigma_known = False

    def upgrade(
        self, state_dict: dict[str, Any], prefix: str, name: str, path: str
    ) -> dict[str, str]:
        """Rename an entry of torch's legacy hook."""
        return rename_legacy(state_dict, prefix, name, path, has_vectors="_u" in self._buffers)

    def complete(self, state_dict: dict[str, Any], path: str, computed: Tensor | None) -> None:
        """Add v, which torch before 1.0 did not save."""
        if "_u" in self._buffers and f"{path}._v" not in state_dict:
            original = state_dict[f"{path.rpartition('.')[0]}.original"]
            u = state_dict[f"{path}._u"]
            state_dict[f"{path}._v"] = right_vector(original, u, self.dim, computed)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_drawn": self._still_drawn()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        drawn = state.pop("_drawn")
        super().__setstate__(state)
        self.owner = object()
        self._own()
        self._mark_drawn(drawn)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before, was_meta, drawn = dict(self._buffers), self._sigma.is_meta, self._still_drawn()
        is_new = learned_scale.is_new(self)
        super()._apply(fn, recurse)
        if is_new:
            learned_scale.mark_new(self)
        self._evaluated = None
        self._widen(before)
        self.replaced()
        if was_meta and not self._sigma.is_meta:
            self.reset_parameters()
        elif drawn:
            self._mark_drawn(drawn)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._widen(dict(self._buffers))
        self._follow_device()
        self._forget_sigma()
        self.replaced()
        drawn = (self._drawn or {}).items()
        kept = [(name, then) for name, then in drawn if prefix + name not in state_dict]
        self._drawn = dict(kept) or None

    def _follow_device(self) -> None:
        """What no state dict holds lies where u does."""
        u = self._buffers.get("_u")
        for name, buffer in self._buffers.items():
            if u is not None and buffer is not None and buffer.device != u.device:
                self._buffers[name] = torch.full_like(buffer, torch.nan, device=u.device)
                self.replaced()

    def _widen(self, sources: dict[str, Tensor | None]) -> None:
        """Where a buffer has become half precision, take it from ``sources`` in float32 instead."""
        if self._sigma.is_complex():
            self._sigma = self._sigma.real.contiguous()
        for name, buffer in self._buffers.items():
            source = sources[name]
            if buffer is None or source is None:
                continue
            dtype = torch.promote_types(buffer.dtype, torch.float32)
            if self.options.stable_fp32 and dtype != buffer.dtype:
                buffer = source.to(buffer.device, dtype)
            self._buffers[name] = buffer.contiguous()  # assigned, it may be a column of a matrix
        self._own()

    def _own(self) -> None:
        if (u := self._buffers.get("_u")) is not None:
            recomputation.own(u, self.owner)
