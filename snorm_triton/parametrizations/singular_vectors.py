"""u, v and sigma of a weight as buffers: drawn, warmed up, moved, loaded and copied."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ..functional import matrix_shape, spectral_normalize, state_dtype
from ..ops import recomputation
from ..ops.calls import State
from ..ops.dispatch import is_sharded
from ..torch_internals import functorch
from ..torch_internals.storage import version
from . import learned_scale
from .base import Originals, Parametrization
from .options import SpectralNormOptions, option
from .unchanged import Identity, identities, unchanged

WARM_UP_ITERATIONS = 15
VECTORS = ("_u", "_v")


class SingularVectors(Parametrization):
    r"""The first singular vectors of a weight, of which ``dim`` are the rows, and its sigma.

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

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw u and v anew, in place; the next access iterates on them as registration does.

        Under torch's name for it. One that leaves the meta device is reset without being asked.
        """
        for name in self._vectors():
            vector = getattr(self, name)
            wide = torch.empty_like(vector, dtype=state_dtype(vector)).normal_(0, 1)
            vector.copy_(self._unit(wide))
        learned_scale.reset(self)
        self._forget_sigma()
        self.replaced()
        self._mark_drawn(self._vectors())

    @torch.no_grad()
    def refresh(self, weight: Tensor, n_power_iterations: int = WARM_UP_ITERATIONS) -> None:
        """Iterate for ``weight`` as it is now, from u and v as they are, which may be averages.

        Drawn anew where they are too short or too long for that, or not finite.
        """
        if weight.ndim > 1 and not self._is_usable():
            self.reset_parameters()
        self._warm_up(weight, n_power_iterations)

    @property
    def sigma(self) -> Tensor:
        """Sigma as of the last access, shape (), detached; NaN where none has told it yet.

        An evaluation in compiled code does not count, nor one before the module was moved.
        """
        sigma = self._sigma.detach()
        if self._evaluated is not None and self._evaluated[1] == version(sigma):
            sigma = self._evaluated[0].to(sigma.device)
        return sigma.abs() if sigma.is_complex() else sigma.clone()

    @torch.no_grad()
    def _warm_up(self, weight: Tensor, n_power_iterations: int = WARM_UP_ITERATIONS) -> None:
        if weight.is_meta:
            return
        self.prepared = None
        if weight.ndim == 1:
            self._sigma.copy_(torch.linalg.vector_norm(weight, dtype=state_dtype(weight)))
        else:
            dtype = state_dtype(weight)
            if is_sharded(weight):
                from ..ops.modes.shards import broadcast

                broadcast(cast(Any, weight).device_mesh, self._u, self._v)
            u, v = (self._unit(vector.to(dtype)) for vector in (self._u, self._v))
            u, v, sigma = self._iterated(weight, u, v, n_power_iterations)
            self._u.copy_(u)
            self._v.copy_(v)
            self._sigma.copy_(sigma.abs())
        learned_scale.start(self, self._sigma)
        self._drawn = self._evaluated = None
        self.is_sigma_known = True

    def _shapes(self, weight: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Those of u and v."""
        rows, columns = matrix_shape(weight, self.dim)
        return (rows,), (columns,)

    def _iterated(self, weight: Tensor, u: Tensor, v: Tensor, n_power_iterations: int) -> State:
        """u, v and sigma after that many iterations from unit vectors."""
        _, *state = spectral_normalize(
            weight,
            u,
            v,
            dim=self.dim,
            n_power_iterations=n_power_iterations,
            backend=self.options.backend,
        )
        return State(*state)

    def _unit(self, vector: Tensor) -> Tensor:
        return F.normalize(vector.flatten(), dim=0, eps=self.eps).view_as(vector)

    def _wake(self, weight: Tensor) -> None:
        """Before the first access since u and v were drawn: warm them up, if they are so still."""
        self._follow_device()
        if not self._still_drawn():  # but loaded, be it one by one
            self._drawn = None
            return
        if torch.compiler.is_compiling() or functorch.active():
            raise RuntimeError(
                "u and v are as they were drawn, and compiled or transformed code cannot warm "
                "them up: call snorm_triton.refresh_spectral_norm(model) before"
            )
        self._warm_up(weight)

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

    def _is_usable(self) -> bool:
        """Whether u and v have the lengths of unit vectors, or of averages of such; reads them."""
        lengths = (torch.linalg.vector_norm(x.to(state_dtype(x))) for x in (self._u, self._v))
        return all(0.01 < length.abs() < 1.01 for length in lengths)

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
